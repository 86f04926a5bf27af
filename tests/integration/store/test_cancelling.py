"""Cancelling: at once before the first attempt, otherwise a request to whoever holds the job."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from uuid import UUID

from store.attempts import ask_cancel, cancel_asked_by, finish, requeue
from store.claiming import claim_any
from store.jobs import CancelResult, request_cancel
from store.pools import AsyncPool, DictConnection, connect
from tests.integration.store.conftest import AsApi
from tests.integration.store.writes import another_tenant, claim, count, finish_of, requeue_of
from tests.support.jobs import Jobs


def _cancel(
    as_api: AsApi, tenant_id: UUID, job_id: UUID, *, by: str = "user"
) -> CancelResult | None:
    return as_api(lambda pool: request_cancel(pool, tenant_id, job_id, by=by))


def _without_ages(row: dict[str, Any]) -> dict[str, Any]:
    """All of a job but what time changes."""
    return {name: value for name, value in row.items() if name not in ("age_s", "remaining_s")}


def test_a_queued_job_is_cancelled_at_once_and_nobody_pays(jobs: Jobs, as_api: AsApi) -> None:
    job_id = jobs.add()
    before = jobs.row(job_id)

    result = _cancel(as_api, jobs.tenant_id, job_id)

    after = jobs.row(job_id)
    assert result is not None
    assert result.worker_id is None
    assert result.row["status"] == "cancelled"
    assert after["finished_at"] == after["cancel_requested_at"] > before["created_at"]
    assert after == before | {
        "cancel_requested_at": after["cancel_requested_at"],
        "cancel_by": "user",
        "status": "cancelled",
        "reason": "cancelled_by_user",
        "finished_at": after["finished_at"],
        "cost_micros": 0,
        "cached_tokens": 0,
        "output_tokens": 0,
    }
    [outcome] = jobs.query("SELECT * FROM job_outcomes")
    asked = {name: before[name] for name in ("model", "input_tokens", "price_version", "end_user")}
    expected = asked | {
        "job_id": job_id,
        "tenant_id": jobs.tenant_id,
        "api_key_id": "key",
        "status": "cancelled",
        "reason": "cancelled_by_user",
        "payer": "nobody",
        "attempt": 0,
        "cached_tokens": 0,
        "output_tokens": 0,
    }
    assert {name: outcome[name] for name in expected} == expected


def test_a_running_job_is_only_asked_to_end(
    jobs: Jobs, as_api: AsApi, connection: DictConnection, worker_id: UUID
) -> None:
    claimed = claim(connection, worker_id, jobs.add())
    before = jobs.row(claimed.job_id)

    result = _cancel(as_api, jobs.tenant_id, claimed.job_id)

    assert result is not None
    assert result.worker_id == worker_id
    assert result.row["status"] == "in_progress"
    _assert_only_asked(jobs, before)


def test_a_job_between_two_attempts_is_only_asked_to_end(
    jobs: Jobs, as_api: AsApi, connection: DictConnection, worker_id: UUID
) -> None:
    claimed = claim(connection, worker_id, jobs.add())
    requeue(connection, requeue_of(claimed, worker_id))
    before = jobs.row(claimed.job_id)

    result = _cancel(as_api, jobs.tenant_id, claimed.job_id)

    assert result is not None
    assert (result.row["status"], result.worker_id) == ("queued", None)
    _assert_only_asked(jobs, before)


def _assert_only_asked(jobs: Jobs, before: dict[str, Any]) -> None:
    """Nothing but the request has been added to the job."""
    after = jobs.row(before["id"])
    assert after["cancel_requested_at"] is not None
    asked = {"cancel_requested_at": after["cancel_requested_at"], "cancel_by": "user"}
    assert after == before | asked
    assert count(jobs, "job_outcomes") == 0


def test_cancelling_twice_keeps_who_asked_first(
    jobs: Jobs, as_api: AsApi, connection: DictConnection, worker_id: UUID
) -> None:
    claimed = claim(connection, worker_id, jobs.add())
    first = _cancel(as_api, jobs.tenant_id, claimed.job_id)

    second = _cancel(as_api, jobs.tenant_id, claimed.job_id, by="operator")

    assert first is not None
    assert second is not None
    assert second.worker_id == first.worker_id
    assert _without_ages(second.row) == _without_ages(first.row)
    assert cancel_asked_by(connection, claimed.job_id) == "user"


def test_a_finished_job_stays_as_it_is(
    jobs: Jobs, as_api: AsApi, connection: DictConnection, worker_id: UUID
) -> None:
    claimed = claim(connection, worker_id, jobs.add())
    finish(connection, finish_of(claimed, worker_id))
    before = jobs.row(claimed.job_id)

    result = _cancel(as_api, jobs.tenant_id, claimed.job_id)

    assert result is not None
    assert (result.row["status"], result.worker_id) == ("completed", None)
    assert jobs.row(claimed.job_id) == before
    assert count(jobs, "job_outcomes") == 1


def test_a_job_cancelled_twice_has_one_outcome(jobs: Jobs, as_api: AsApi) -> None:
    job_id = jobs.add()
    _cancel(as_api, jobs.tenant_id, job_id)
    before = jobs.row(job_id)

    again = _cancel(as_api, jobs.tenant_id, job_id)

    assert again is not None
    assert jobs.row(job_id) == before
    assert count(jobs, "job_outcomes") == 1


def test_a_job_of_another_tenant_is_not_there_to_cancel(jobs: Jobs, as_api: AsApi) -> None:
    job_id = jobs.add()

    result = _cancel(as_api, another_tenant(jobs), job_id)

    assert result is None
    row = jobs.row(job_id)
    assert (row["status"], row["cancel_requested_at"]) == ("queued", None)


def test_an_operators_request_is_noted_once(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    claimed = claim(connection, worker_id, jobs.add())
    ask_cancel(connection, claimed.job_id, by="operator")

    ask_cancel(connection, claimed.job_id, by="user")

    assert cancel_asked_by(connection, claimed.job_id) == "operator"


def test_nobody_is_named_for_a_job_that_nobody_cancelled(
    jobs: Jobs, connection: DictConnection
) -> None:
    job_id = jobs.add()

    asked_by = cancel_asked_by(connection, job_id)

    assert asked_by is None


def test_a_claim_racing_a_cancel_leaves_one_winner(
    jobs: Jobs, as_api: AsApi, worker_id: UUID
) -> None:
    job_ids = [jobs.add() for _ in range(20)]
    together = Barrier(2)

    async def cancel_all(pool: AsyncPool) -> None:
        together.wait(timeout=10)
        for job_id in job_ids:
            await request_cancel(pool, jobs.tenant_id, job_id)

    def claim_all() -> set[UUID]:
        with connect(jobs.urls.worker, application_name="test-worker") as connection:
            together.wait(timeout=10)
            claims = [claim_any(connection, worker_id, "default") for _ in job_ids]
        return {claimed.job_id for claimed in claims if claimed}

    with ThreadPoolExecutor(2) as threads:
        claiming = threads.submit(claim_all)
        threads.submit(as_api, cancel_all).result(timeout=30)
        claimed = claiming.result(timeout=30)

    ended = {row["job_id"] for row in jobs.query("SELECT job_id FROM job_outcomes")}
    assert claimed | ended == set(job_ids)
    assert not claimed & ended
