"""What stands in the rows of jobs that were reaped, and that others' rows stay as they were."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from store.pools import DictConnection
from store.reaping import (
    LOST,
    WAITING,
    Reaped,
    dead_leases,
    forget_leases,
    jobs_that_need_clients,
    reap_lost,
    reap_waiting,
)
from tasks.errors import DeadlineExceeded, WorkerLost
from tests.support.roles import Connections
from tests.support.rows import Rows


@pytest.fixture
def worker(roles: Connections) -> DictConnection:
    """One that waits for no lock for long."""
    roles.worker.execute("SET lock_timeout = '2s'")
    return roles.worker


@pytest.fixture
def dead(rows: Rows) -> UUID:
    return rows.worker(expires_s=-0.1)


def _set(rows: Rows, job: UUID, changes: str) -> None:
    rows.connection.execute(f"UPDATE jobs SET {changes} WHERE id = %s".encode(), (job,))


LATE, LOST_WORKER = DeadlineExceeded().message, WorkerLost().message
# Of a job that is cut off: status, reason, payer, code, message, may be tried again, finish reason.
_CUT = ("cancelled", "cancelled_by_user", "tenant", None, None, None, None)
_TOO_LATE = ("incomplete", "deadline_exceeded", "tenant", None, None, None, "length")
_EXPIRED = ("failed", "deadline_exceeded", "nobody", "deadline_exceeded", LATE, True)
_CRASHED = ("failed", "worker_lost", "platform", "worker_lost", LOST_WORKER, True)


@pytest.mark.parametrize(
    ("fields", "ending"),
    [
        ({"cancel_by": "user", "produced": "abc"}, _CUT),
        ({"cancel_by": "user", "produced": ""}, (*_CUT[:2], "nobody", *_CUT[3:])),
        (
            {"cancel_by": "operator", "produced": "abc"},
            ("cancelled", "cancelled_by_operator", "platform"),
        ),
        (
            {"cancel_by": "operator", "produced": ""},
            ("cancelled", "cancelled_by_operator", "platform"),
        ),
        ({"deadline_s": -1, "produced": "abc"}, _TOO_LATE),
        ({"deadline_s": -1, "produced": ""}, _EXPIRED),
        ({"fail_count": 2, "attempt": 3, "produced": "abc"}, _CRASHED),
        ({"fail_count": 2, "attempt": 3, "produced": ""}, _CRASHED),
    ],
)
def test_how_a_job_ends_that_its_worker_left(
    worker: DictConnection,
    rows: Rows,
    dead: UUID,
    fields: dict[str, Any],
    ending: tuple[Any, ...],
) -> None:
    job, produced = rows.running_job(rows.tenant(), dead, **fields), fields["produced"]

    [reaped] = reap_lost(worker)

    row = rows.of_job(job)
    outcome = rows.one("SELECT * FROM job_outcomes")
    output = rows.one("SELECT output FROM job_results")["output"]
    expected = [*ending, *[None] * (7 - len(ending))]
    assert [
        *(row["status"], row["reason"], outcome["payer"], row["error_code"]),
        *(row["error_message"], row["error_retryable"]),
        output[0]["finish_reason"] if output else None,
    ] == expected
    assert [choice["text"] for choice in output] == ([] if ending[0] == "failed" else [produced])
    assert (outcome["status"], outcome["reason"]) == (row["status"], row["reason"])
    assert (reaped.status, reaped.attempt) == (ending[0], row["attempt"])
    counted = (row["cached_tokens"], row["output_tokens"], row["worker_id"])
    assert counted == (0, len(produced), None)
    assert (outcome["cached_tokens"], outcome["output_tokens"]) == (0, len(produced))
    cost = 100 + 2 * len(produced) if outcome["payer"] == "tenant" else 0
    assert row["cost_micros"] == cost


def test_a_job_that_never_ran_ends_with_nothing(worker: DictConnection, rows: Rows) -> None:
    tenant = rows.tenant()
    late, cancelled = rows.job(tenant, deadline_s=-1), rows.job(tenant, num_choices=2)
    _set(rows, cancelled, "cancel_requested_at = now()")  # nobody knows any more by whom

    reaped = reap_waiting(worker)

    assert {(job.job_id, job.attempt, job.verdict, job.status) for job in reaped} == {
        (late, 0, "deadline", "failed"),
        (cancelled, 0, "cancelled_by_user", "cancelled"),
    }
    results = rows.connection.execute("SELECT job_id, output, last_seq FROM job_results").fetchall()
    empty = [{"index": index, "text": "", "finish_reason": None} for index in range(2)]
    assert {row["job_id"]: (row["output"], row["last_seq"]) for row in results} == {
        late: ([], 0),
        cancelled: (empty, 0),
    }


def test_a_running_job_cancelled_by_nobody_knows_whom_is_the_users(
    worker: DictConnection, rows: Rows, dead: UUID
) -> None:
    job = rows.running_job(rows.tenant(), dead)
    _set(rows, job, "cancel_requested_at = now()")

    assert [each.verdict for each in reap_lost(worker)] == ["cancelled_by_user"]


@pytest.mark.parametrize(
    ("fail_count", "pause_s"), [(0, 0), (1, 2), (2, 4), (5, 32), (6, 60), (9, 60)]
)
def test_a_job_that_is_lost_again_and_again_waits_ever_longer(
    worker: DictConnection, rows: Rows, dead: UUID, fail_count: int, pause_s: int
) -> None:
    job = rows.running_job(rows.tenant(), dead, attempt=fail_count + 1, fail_count=fail_count)
    _set(rows, job, "max_fails = 20")

    reap_lost(worker)

    row = rows.one("SELECT extract(epoch FROM run_after - now())::float8 AS s, * FROM jobs")
    assert pause_s - 1.5 < row["s"] <= pause_s
    assert (row["status"], row["fail_count"]) == ("queued", fail_count + 1)


def _others(rows: Rows, *jobs: UUID) -> dict[str, list[Any]]:
    """All rows but those of these jobs."""
    found = {}
    for table, column in (("jobs", "id"), ("job_attempts", "job_id"), ("job_outcomes", "job_id")):
        query = f"SELECT * FROM {table} WHERE {column} <> ALL(%s) ORDER BY 1, attempt"
        found[table] = rows.connection.execute(query.encode(), (list(jobs),)).fetchall()
    return found


def test_jobs_are_reaped_each_its_own_way_and_no_other_is_touched(
    worker: DictConnection, rows: Rows, dead: UUID
) -> None:
    tenant, alive = rows.tenant(), rows.worker()
    again, ended = rows.running_job(tenant, dead), rows.running_job(tenant, dead, cancel_by="user")
    rows.running_job(tenant, alive, produced="abcdef", cancel_by="user")
    rows.running_job(tenant, alive, produced="abcdef", deadline_s=-1)
    rows.job(tenant)
    rows.ended_job(tenant)
    before = _others(rows, again, ended)

    assert reap_lost(worker) == [
        Reaped(again, 1, "requeue", None),
        Reaped(ended, 1, "cancelled_by_user", "cancelled"),
    ]
    assert reap_waiting(worker) == []

    assert _others(rows, again, ended) == before
    states = [rows.of_job(job)["status"] for job in (again, ended)]
    assert states == ["queued", "cancelled"]
    assert rows.of_job(ended)["output_tokens"] == 0  # not what others produced


def test_only_the_attempt_that_was_lost_is_marked(
    worker: DictConnection, rows: Rows, dead: UUID
) -> None:
    tenant = rows.tenant()
    job = rows.running_job(tenant, dead, attempt=2, fail_count=1)
    rows.attempt(job, tenant, 1, uuid4())

    reap_lost(worker)

    marks = rows.connection.execute("SELECT outcome FROM job_attempts ORDER BY attempt").fetchall()
    assert [row["outcome"] for row in marks] == [None, "lost"]


def test_a_job_costs_no_more_than_was_reserved_for_it_and_ends_without_a_reservation(
    worker: DictConnection, rows: Rows, dead: UUID
) -> None:
    tenant = rows.tenant()
    jobs = [rows.running_job(tenant, dead, produced="abc", cancel_by="user") for _ in range(3)]
    change = "UPDATE reservations SET amount_micros = 50 WHERE job_id = %s"
    rows.connection.execute(change, (jobs[0],))
    rows.connection.execute("DELETE FROM reservations WHERE job_id = %s", (jobs[1],))

    reap_lost(worker)

    assert [rows.of_job(job)["cost_micros"] for job in jobs] == [50, 106, 106]


def test_a_job_that_is_late_and_cancelled_is_reaped_once(
    worker: DictConnection, rows: Rows
) -> None:
    job = rows.job(rows.tenant(), deadline_s=-1, cancel_by="operator")

    assert reap_waiting(worker) == [Reaped(job, 0, "cancelled_by_operator", "cancelled")]


def test_the_first_are_found_first_and_those_set_aside_are_not(
    worker: DictConnection, rows: Rows, dead: UUID
) -> None:
    tenant = rows.tenant()
    lost = [rows.running_job(tenant, dead) for _ in range(3)]
    late = [rows.job(tenant, deadline_s=deadline) for deadline in (-5, -9, -7)]
    order = [late[1], late[2], late[0]]

    assert LOST.waiting(worker, limit=2) == lost[:2]
    assert LOST.waiting(worker, aside=lost[:1]) == lost[1:]
    assert WAITING.waiting(worker, limit=2) == order[:2]
    assert WAITING.waiting(worker, aside=order[:1]) == order[1:]
    assert [job.job_id for job in LOST.reap(worker, aside=lost[:1])] == lost[1:]
    assert [job.job_id for job in WAITING.reap(worker, aside=order[:1], limit=1)] == order[1:2]

    cancelled = [rows.job(tenant, cancel_by="user") for _ in range(3)]
    assert WAITING.waiting(worker, aside=order, limit=2) == cancelled[:2]
    assert WAITING.waiting(worker, aside=[*order, cancelled[0]]) == cancelled[1:]


def test_only_these_are_reaped_and_with_what_they_produced_unless_told_otherwise(
    worker: DictConnection, rows: Rows, dead: UUID
) -> None:
    tenant = rows.tenant()
    lost = [rows.running_job(tenant, dead, produced="abc", cancel_by="user") for _ in range(3)]
    waiting = [
        *(rows.job(tenant, deadline_s=-1) for _ in range(2)),
        *(rows.job(tenant, cancel_by="user") for _ in range(2)),
    ]

    assert [job.job_id for job in LOST.reap_these(worker, lost[1:2])] == lost[1:2]
    assert [job.job_id for job in LOST.reap_these(worker, lost[2:], is_bare=True)] == lost[2:]
    these = {waiting[0], waiting[2]}
    assert {job.job_id for job in WAITING.reap_these(worker, list(these))} == these

    assert [rows.of_job(job)["output_tokens"] for job in lost] == [None, 3, 0]
    statuses = [rows.of_job(job)["status"] for job in waiting]
    assert statuses == ["failed", "queued", "cancelled", "queued"]


@pytest.mark.parametrize("fields", [{"deadline_s": -1}, {"cancel_by": "user"}])
def test_a_waiting_job_that_somebody_holds_is_left_for_later(
    worker: DictConnection, roles: Connections, rows: Rows, fields: dict[str, Any]
) -> None:
    job = rows.job(rows.tenant(), **fields)
    with roles.owner.transaction():
        roles.owner.execute("SELECT FROM jobs WHERE id = %s FOR UPDATE", (job,))
        assert reap_waiting(worker) == []

    assert [each.job_id for each in reap_waiting(worker)] == [job]


def test_which_jobs_end_when_nobody_waits_for_them(worker: DictConnection, rows: Rows) -> None:
    tenant, alive = rows.tenant(), rows.worker()
    jobs = [rows.running_job(tenant, alive) for _ in range(4)]
    queued, cancelled = rows.job(tenant), rows.running_job(tenant, alive, cancel_by="user")
    for job in (*jobs[:3], queued, cancelled):
        _set(rows, job, "on_disconnect = 'cancel'")

    assert jobs_that_need_clients(worker, limit=9) == jobs[:3]
    assert jobs_that_need_clients(worker, limit=2) == jobs[:2]


def test_which_leases_are_forgotten(worker: DictConnection, rows: Rows) -> None:
    dead, other = (rows.worker(expires_s=-90_000) for _ in range(2))
    young, alive = rows.worker(expires_s=-3_600), rows.worker(expires_s=100_000)

    assert set(dead_leases(worker)) == {dead, other}
    assert dead_leases(worker, aside=[other]) == [dead]
    assert forget_leases(worker, [dead, alive]) == 1

    left = rows.connection.execute("SELECT worker_id FROM worker_leases").fetchall()
    assert {row["worker_id"] for row in left} == {other, young, alive}
