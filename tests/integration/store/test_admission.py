"""Admission: all rows or none, one job per idempotency key, no more held than there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import UUID

import pytest
from psycopg.errors import UniqueViolation

from cli.stack.database import DatabaseUrls
from store.admission import Admitted, NewJob, admit, find_first_try, find_first_use
from store.pools import AsyncPool, async_pool
from tasks.errors import IdempotencyKeyReused, InsufficientQuota
from tasks.token_ids import pack_token_ids
from tests.integration.store.conftest import AsApi
from tests.integration.store.writes import another_tenant, count
from tests.support.jobs import Jobs

WRITTEN = ["jobs", "job_payloads", "reservations", "idempotency_keys"]


def _held(jobs: Jobs, tenant_id: UUID) -> int:
    rows = jobs.query("SELECT held_micros FROM accounts WHERE tenant_id = %s", (tenant_id,))
    return int(rows[0]["held_micros"])


def _backdate_keys(jobs: Jobs, age: str) -> None:
    with jobs.connect() as owner:
        owner.execute(
            "UPDATE idempotency_keys SET created_at = now() - %s::interval",
            (age,),
        )


def test_admission_writes_every_row_once(jobs: Jobs) -> None:
    new = jobs.new(idempotency_key="key", end_user="ann", metadata={"trace": "7"})

    admitted = jobs.admit(new)

    assert admitted.is_new
    assert [count(jobs, table) for table in WRITTEN] == [1, 1, 1, 1]
    assert _held(jobs, jobs.tenant_id) == new.reserve_micros
    assert [count(jobs, table) for table in ("job_outcomes", "job_results", "job_attempts")] == [
        0,
        0,
        0,
    ]


def test_an_admitted_job_remembers_how_to_be_shown(jobs: Jobs) -> None:
    fields = {
        "num_choices": 3,
        "dialect": "chat",
        "tool_format": "hermes",
        "is_background": True,
        "on_disconnect": "cancel",
    }

    plain, other = jobs.row(jobs.add()), jobs.row(jobs.add(**fields))

    assert {name: other[name] for name in fields} == fields
    assert [plain[name] for name in fields] == [1, "job", None, False, "continue"]


def test_an_admitted_job_is_as_it_was_asked_for(jobs: Jobs) -> None:
    new = jobs.new(end_user="ann", metadata={"trace": "7"}, prompt=(5, 6), deadline_s=60.0)

    jobs.admit(new)

    row = jobs.row(new.id)
    assert (row["status"], row["attempt"], row["worker_id"]) == ("queued", 0, None)
    assert (row["end_user"], row["metadata"]) == ("ann", {"trace": "7"})
    assert (row["deadline_at"] - row["created_at"]).total_seconds() == 60
    assert (row["price_version"], row["output_price"]) == (1, new.prices.output_micros)
    payload = jobs.query("SELECT * FROM job_payloads WHERE job_id = %s", (new.id,))[0]
    assert (payload["request"], payload["sampling"]) == (new.request, new.sampling)
    assert payload["prompt_token_ids"] == pack_token_ids((5, 6))


def test_concurrent_requests_with_one_key_make_one_job(jobs: Jobs, as_api: AsApi) -> None:
    requests = [jobs.new(idempotency_key="key") for _ in range(30)]

    async def send(pool: AsyncPool) -> list[Admitted]:
        return await asyncio.gather(*(admit(pool, request) for request in requests))

    answers = as_api(send)

    assert sum(answer.is_new for answer in answers) == 1
    assert len({answer.job_id for answer in answers}) == 1
    assert [count(jobs, table) for table in WRITTEN] == [1, 1, 1, 1]
    assert _held(jobs, jobs.tenant_id) == requests[0].reserve_micros


def test_a_key_used_for_another_request_is_refused(jobs: Jobs) -> None:
    first = jobs.add(idempotency_key="key")
    other = jobs.new(idempotency_key="key", request_hash=b"other")

    with pytest.raises(IdempotencyKeyReused) as refusal:
        jobs.admit(other)

    assert refusal.value.param == "Idempotency-Key"
    assert [row["id"] for row in jobs.query("SELECT id FROM jobs")] == [first]
    assert _held(jobs, jobs.tenant_id) == other.reserve_micros


def test_two_tenants_may_use_the_same_key(jobs: Jobs) -> None:
    other = another_tenant(jobs)
    jobs.add(idempotency_key="key")

    admitted = jobs.admit(jobs.new(tenant_id=other, idempotency_key="key", request_hash=b"other"))

    assert admitted.is_new
    assert jobs.row(admitted.job_id)["tenant_id"] == other


def test_requests_without_a_key_are_jobs_of_their_own(jobs: Jobs) -> None:
    first, second = jobs.new(), jobs.new()

    admitted = [jobs.admit(first), jobs.admit(second)]

    assert [answer.is_new for answer in admitted] == [True, True]
    assert count(jobs, "idempotency_keys") == 0


def test_a_refusal_for_credit_leaves_nothing_behind(jobs: Jobs) -> None:
    poor = another_tenant(jobs, credit_micros=99)
    request = jobs.new(tenant_id=poor, idempotency_key="key", reserve_micros=100)

    with pytest.raises(InsufficientQuota):
        jobs.admit(request)

    assert [count(jobs, table) for table in WRITTEN] == [0, 0, 0, 0]
    assert _held(jobs, poor) == 0


def test_a_key_refused_for_credit_can_be_used_again(jobs: Jobs) -> None:
    poor = another_tenant(jobs, credit_micros=99)
    with pytest.raises(InsufficientQuota):
        jobs.admit(jobs.new(tenant_id=poor, idempotency_key="key", reserve_micros=100))

    admitted = jobs.admit(
        jobs.new(tenant_id=poor, idempotency_key="key", reserve_micros=99, request_hash=b"other")
    )

    assert admitted.is_new
    assert _held(jobs, poor) == 99


def test_concurrent_admissions_hold_no_more_than_balance_and_limit(
    jobs: Jobs, as_api: AsApi
) -> None:
    tenant = another_tenant(jobs, credit_micros=1_000)
    with jobs.connect() as owner:
        owner.execute(
            "UPDATE accounts SET credit_limit_micros = 550 WHERE tenant_id = %s", (tenant,)
        )
    requests = [jobs.new(tenant_id=tenant, reserve_micros=100) for _ in range(30)]

    async def send(pool: AsyncPool) -> list[Admitted | BaseException]:
        return await asyncio.gather(
            *(admit(pool, request) for request in requests), return_exceptions=True
        )

    answers = as_api(send)

    refused = [answer for answer in answers if isinstance(answer, InsufficientQuota)]
    admitted = [answer for answer in answers if isinstance(answer, Admitted)]
    assert (len(admitted), len(refused)) == (15, 15)
    assert _held(jobs, tenant) == 1_500
    assert count(jobs, "jobs") == count(jobs, "reservations") == 15


def _repeat(jobs: Jobs, first: NewJob) -> Admitted:
    return jobs.admit(jobs.new(idempotency_key=first.idempotency_key))


def test_a_key_makes_a_new_job_after_a_day(jobs: Jobs) -> None:
    first = jobs.new(idempotency_key="key")
    jobs.admit(first)
    _backdate_keys(jobs, "24 hours 1 minute")

    second = _repeat(jobs, first)

    assert second.is_new
    assert second.job_id != first.id
    assert _repeat(jobs, first).job_id == second.job_id
    assert count(jobs, "idempotency_keys") == 1


def test_a_key_gives_the_first_job_for_almost_a_day(jobs: Jobs) -> None:
    first = jobs.new(idempotency_key="key")
    jobs.admit(first)
    _backdate_keys(jobs, "23 hours 59 minutes")

    second = _repeat(jobs, first)

    assert (second.is_new, second.job_id) == (False, first.id)


class _Between:
    """A gate that lets a key go between admission's statement and the next one."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._num_turns = 0

    @asynccontextmanager
    async def turn(self, _tenant_id: UUID) -> AsyncIterator[None]:
        self._num_turns += 1
        if self._num_turns == 2:
            with self._jobs.connect() as owner:
                owner.execute("DELETE FROM idempotency_keys")
        yield


def test_a_key_that_ends_just_when_it_is_repeated_makes_a_new_job(
    jobs: Jobs, as_api: AsApi
) -> None:
    first = jobs.add(idempotency_key="key")
    again = jobs.new(idempotency_key="key")

    async def repeat(pool: AsyncPool) -> Admitted:
        pool.gate = cast(Any, _Between(jobs))
        return await admit(pool, again)

    admitted = as_api(repeat)

    assert (admitted.is_new, admitted.job_id) == (True, again.id)
    assert {row["id"] for row in jobs.query("SELECT id FROM jobs")} == {first, again.id}


def test_what_is_wrong_with_a_job_itself_is_no_refusal(jobs: Jobs) -> None:
    new = jobs.new()
    jobs.admit(new)

    with pytest.raises(UniqueViolation):
        jobs.admit(new)


def test_what_a_key_was_first_used_for_is_known_for_a_day(jobs: Jobs, as_api: AsApi) -> None:
    jobs.add(idempotency_key="another")
    first = jobs.add(idempotency_key="key")
    asked = [jobs.new(idempotency_key=key) for key in ("key", "unused")]

    async def ask(pool: AsyncPool) -> list[Admitted | None]:
        return [await find_first_use(pool, job) for job in asked]

    found = as_api(ask)
    _backdate_keys(jobs, "24 hours 1 minute")

    assert found == [Admitted(first), None]
    assert as_api(ask) == [None, None]


def test_jobs_that_are_found_again_are_the_tenants_own(jobs: Jobs, database: DatabaseUrls) -> None:
    """Not even where no row policy holds others' back."""
    jobs.add(idempotency_key="key")
    others = jobs.new(tenant_id=another_tenant(jobs), idempotency_key="key")

    async def as_owner() -> list[Any]:
        async with async_pool(database.owner, application_name="test", max_size=1) as pool:
            return [await ask(pool, others) for ask in (find_first_try, find_first_use)]

    assert asyncio.run(as_owner()) == [None, None]


def test_a_job_takes_its_input_and_all_its_choices_may_put_out_from_rate_limits(
    jobs: Jobs,
) -> None:
    job = jobs.new(prompt=(1, 2, 3), max_output_tokens=20, num_choices=4)

    assert job.max_tokens == 3 + 4 * 20
