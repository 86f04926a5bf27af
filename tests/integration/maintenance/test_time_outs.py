"""A unit whose statement runs into its time limit holds up no other unit, and no other kind.

Somebody has its row locked and doesn't let go: an operator's session, say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import sql
from psycopg.errors import QueryCanceled

from billing.usage import Settling
from store import hints, leases, retention
from store.aside import FIRST_S
from store.retention import DAY_S
from store.settings import RetentionSettings
from tasks.ids import uuid7, uuid7_floor
from tests.support.roles import Connections
from tests.support.rows import Rows
from tests.support.services import Services
from workers.maintenance.deserter import GRACE_S as DESERTED_S
from workers.maintenance.deserter import Deserter
from workers.maintenance.file_sweeper import FileSweeper
from workers.maintenance.purger import Purger
from workers.maintenance.reaper import GRACE_S, Reaper

LIMIT_MS = 150


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture(autouse=True)
def impatient(roles: Connections) -> None:
    for connection in (roles.worker, roles.billing):
        connection.execute(f"SET statement_timeout = {LIMIT_MS}")


@contextmanager
def _locked(roles: Connections, table: str, column: str, *ids: UUID) -> Iterator[None]:
    query = sql.SQL("SELECT FROM {} WHERE {} = ANY(%s) FOR UPDATE").format(
        sql.Identifier(table), sql.Identifier(column)
    )
    with roles.owner.transaction():
        assert roles.owner.execute(query, (list(ids),)).rowcount == len(ids)
        yield


@contextmanager
def _unusable(roles: Connections, table: str) -> Iterator[None]:
    with roles.owner.transaction():
        roles.owner.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        yield


def _unstored(rows: Rows, tenant: UUID) -> UUID:
    job = rows.ended_job(tenant)
    rows.attempt(job, tenant, 1, uuid4(), outcome="ok")
    rows.connection.execute(
        "UPDATE jobs SET finished_at = now() - interval '1 day', is_stored = false WHERE id = %s",
        (job,),
    )
    return job


def _gone(rows: Rows, tenant: UUID) -> UUID:
    job = rows.ended_job(tenant)
    rows.connection.execute(
        "UPDATE jobs SET deleted_at = now() - interval '1 day' WHERE id = %s", (job,)
    )
    return job


def _deleted(rows: Rows) -> set[UUID]:
    found = rows.connection.execute("SELECT id FROM jobs WHERE deleted_at IS NOT NULL").fetchall()
    return {row["id"] for row in found}


def test_a_job_that_can_not_be_deleted_in_time_holds_up_no_job_and_no_kind(
    services: Services, clock: _Clock, roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant()
    jobs = [_unstored(rows, tenant) for _ in range(20)]
    gone = _gone(rows, tenant)
    purger = Purger(services.redis_url, clock=clock)

    with _locked(roles, "job_attempts", "job_id", jobs[7]):
        purger.step(roles.worker)
        assert _deleted(rows) == {*jobs} - {jobs[7]}
        assert gone not in _deleted(rows)

    clock.now += FIRST_S + 0.1
    purger.step(roles.worker)
    assert _deleted(rows) == {*jobs}


def test_a_kind_that_can_not_be_looked_for_in_time_holds_up_no_other(
    services: Services, clock: _Clock, roles: Connections, rows: Rows
) -> None:
    gone = _gone(rows, rows.tenant())

    with _unusable(roles, "batches"):
        has_more = Purger(services.redis_url, clock=clock).step(roles.worker)

    assert not has_more
    assert gone not in _deleted(rows)


def test_a_job_that_can_not_be_reaped_in_time_holds_up_none(
    clock: _Clock, roles: Connections, rows: Rows
) -> None:
    tenant, dead = rows.tenant(), rows.worker(expires_s=-1)
    lost = [rows.running_job(tenant, dead) for _ in range(9)]
    late = rows.job(tenant, deadline_s=-1.0)
    reaper = Reaper(clock)

    with _locked(roles, "job_attempts", "job_id", lost[4]):
        reaper.step(roles.worker)
        states = [rows.of_job(job)["status"] for job in (*lost, late)]

    assert states == [*["queued"] * 4, "in_progress", *["queued"] * 4, "failed"]
    clock.now += FIRST_S + 0.1
    reaper.step(roles.worker)
    assert rows.of_job(lost[4])["status"] == "queued"


def test_lost_jobs_are_reaped_while_those_that_wait_can_not_be_ended(
    clock: _Clock, roles: Connections, rows: Rows
) -> None:
    """However long that goes on: it is no outage, after which workers have grace."""
    tenant, dead = rows.tenant(), rows.worker(expires_s=-1)
    late = rows.job(tenant, attempt=1, deadline_s=-1.0)
    lost = rows.running_job(tenant, dead)
    reaper = Reaper(clock)
    states = []

    with roles.owner.transaction():
        # To end it is to wait for whoever is about to add its result.
        roles.owner.execute(
            "INSERT INTO job_results (job_id, tenant_id, output, last_seq)"
            " VALUES (%s, %s, '[]', 1)",
            (late, tenant),
        )
        for _ in range(2):  # the third loss would be its last
            roles.worker.execute(
                "UPDATE jobs SET status = 'in_progress', worker_id = %s WHERE id = %s", (dead, lost)
            )
            reaper.step(roles.worker)
            states += [rows.of_job(job)["status"] for job in (lost, late)]
            clock.now += FIRST_S + 0.1

    assert states == ["queued"] * 4


def test_after_a_postgres_that_was_too_slow_for_anything_workers_may_beat_first(
    clock: _Clock, roles: Connections, rows: Rows
) -> None:
    job = rows.running_job(rows.tenant(), rows.worker(expires_s=-1))
    reaper = Reaper(clock)

    with _unusable(roles, "jobs"):
        assert not reaper.step(roles.worker)
    clock.now += 1.0
    reaper.step(roles.worker)
    assert rows.of_job(job)["status"] == "in_progress"

    for _ in range(int(GRACE_S)):
        clock.now += 1.0
        reaper.step(roles.worker)
    assert rows.of_job(job)["status"] == "queued"


def test_a_job_that_can_not_be_hinted_in_time_holds_up_none(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant()
    jobs = [rows.job(tenant, hinted_ago_s=60) for _ in range(20)]
    told: list[UUID] = []

    with _locked(roles, "jobs", "id", jobs[3]):
        hinted = hints.rehint(roles.worker, set_aside=lambda job_id, _: told.append(job_id))

    assert {row["id"] for row in hinted} == {*jobs} - {jobs[3]}
    assert told == [jobs[3]]


def _old(rows: Rows, tenant: UUID) -> UUID:
    row = rows.one("SELECT (extract(epoch FROM now()) * 1000)::bigint AS ms")
    floor = uuid7_floor(row["ms"] - int(60 * DAY_S * 1_000)).int
    job = rows.ended_job(tenant, id=UUID(int=floor | (uuid4().int & ((1 << 60) - 1))))
    rows.connection.execute(
        "UPDATE jobs SET finished_at = now() - interval '60 days' WHERE id = %s", (job,)
    )
    rows.connection.execute(
        "INSERT INTO job_payloads (job_id, tenant_id, request, prompt_token_ids, sampling)"
        " VALUES (%s, %s, '{}', '', '{}')",
        (job, tenant),
    )
    return job


def test_a_row_that_can_not_expire_in_time_holds_up_none(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant()
    jobs = sorted(_old(rows, tenant) for _ in range(9))
    kind = retention.expiries(RetentionSettings())["job_payloads"]

    with _locked(roles, "job_payloads", "job_id", jobs[2]):
        expired = kind(roles.worker, batch=9)

    assert expired.num_removed == 8
    assert [failure[:5] for failure in expired.failures] == ["57014"]
    assert expired.after == {"id": jobs[8]}


def test_a_batch_of_which_nothing_can_expire_is_passed_over(
    roles: Connections, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = sorted(_old(rows, rows.tenant()) for _ in range(4))
    kind = retention.expiries(RetentionSettings())["job_payloads"]

    def slow(*_: Any, **__: Any) -> list[int]:
        raise QueryCanceled

    with monkeypatch.context() as patch:
        patch.setattr(retention, "apart", slow)
        expired = kind(roles.worker, batch=2)
    behind = kind(roles.worker, batch=2, after=expired.after)

    assert (expired.num_removed, len(expired.failures)) == (0, 1)
    assert expired.after == {"id": jobs[1]}
    assert behind.num_removed == 2


def test_an_outcome_that_can_not_be_settled_in_time_is_settled_in_the_end(
    clock: _Clock, roles: Connections, rows: Rows
) -> None:
    """It never counts as failed: nothing is wrong with what is owed."""
    slow, other = rows.tenant(), rows.tenant()
    waiting = rows.ended_job(slow)
    for _ in range(8):
        rows.ended_job(other)
    settling = Settling(clock)

    with _locked(roles, "accounts", "tenant_id", slow):
        assert settling.settle(roles.billing) == 8
        clock.now += FIRST_S + 0.1
        assert settling.settle(roles.billing) == 0
    clock.now += 2 * FIRST_S + 0.1

    outcome = rows.one("SELECT settle_fails FROM job_outcomes WHERE job_id = %s", waiting)
    assert outcome["settle_fails"] == 0
    assert settling.settle(roles.billing) == 1


def test_a_kind_of_files_that_can_not_be_looked_for_in_time_holds_up_no_other(
    roles: Connections, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_FILES_URL", str(tmp_path))
    roles.owner.execute(
        "INSERT INTO file_uploads (id, tenant_id, reserved_bytes, abandoned_at)"
        " VALUES (%s, %s, 9, now())",
        (uuid7(), rows.tenant()),
    )

    with _unusable(roles, "files"):
        FileSweeper().step(roles.worker)

    assert rows.one("SELECT count(*) AS num FROM file_uploads")["num"] == 0


def test_a_deserted_job_that_can_not_be_cancelled_in_time_holds_up_none_and_comes_again(
    services: Services, clock: _Clock, roles: Connections, rows: Rows
) -> None:
    tenant, worker = rows.tenant(), rows.worker()
    jobs = [rows.running_job(tenant, worker) for _ in range(3)]
    rows.connection.execute("UPDATE jobs SET on_disconnect = 'cancel'")
    deserter = Deserter(services.redis_url, clock)
    deserter._heard = set(jobs)
    deserter.step(roles.worker)
    clock.now += DESERTED_S

    with _locked(roles, "jobs", "id", jobs[0]):
        deserter.step(roles.worker)
        asked = [rows.of_job(job)["cancel_requested_at"] is not None for job in jobs]
    assert asked == [False, True, True]

    deserter.step(roles.worker)
    assert rows.of_job(jobs[0])["cancel_requested_at"] is None
    clock.now += DESERTED_S
    deserter.step(roles.worker)
    assert rows.of_job(jobs[0])["cancel_requested_at"] is not None


def test_a_worker_that_stops_repeats_nothing_that_took_too_long(
    roles: Connections, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stops it kills it soon."""
    monkeypatch.setattr(leases, "GIVE_BACK_S", LIMIT_MS / 2_000)
    worker = rows.worker()
    jobs = [rows.running_job(rows.tenant(), worker) for _ in range(9)]

    with (
        _locked(roles, "job_attempts", "job_id", jobs[0]),
        pytest.raises(QueryCanceled),
    ):
        leases.give_up(roles.worker, worker)

    assert {rows.of_job(job)["status"] for job in jobs} == {"in_progress"}
