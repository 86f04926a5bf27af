"""Which queued jobs get a new hint, how many at a time, and in which order."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest

from cli.stack.database import DatabaseUrls
from store.hints import (
    MAX_SEEN,
    MIN_WINDOW,
    NOBODY,
    forget_hints,
    give_back,
    next_tenant,
    rehint,
)
from store.pools import connect
from tests.support.poison import refuse
from tests.support.roles import Connections
from tests.support.rows import Rows
from tests.support.waiting import wait_until

LANE = ("demo", "default", 3)  # of all rows here


def _hinted(roles: Connections) -> list[UUID]:
    return [row["id"] for row in rehint(roles.worker)]


def test_a_job_whose_hint_is_lost_is_hinted_again(roles: Connections, rows: Rows) -> None:
    job = rows.job(rows.tenant(), hinted_ago_s=31)

    [hint] = rehint(roles.worker)

    assert hint["id"] == job
    assert (hint["pool"], hint["service_tier"], hint["lane"]) == ("demo", "default", 3)
    assert hint["hint_count"] == 2
    assert _hinted(roles) == []


def test_a_job_that_was_never_hinted_is_hinted_at_once(roles: Connections, rows: Rows) -> None:
    job = rows.job(rows.tenant())
    rows.connection.execute("UPDATE jobs SET hinted_at = NULL")

    assert _hinted(roles) == [job]


@pytest.mark.parametrize("hint_count", [0, 1, 12])
def test_a_job_may_need_a_hint_after_15_s_however_often_it_was_hinted(
    roles: Connections, rows: Rows, hint_count: int
) -> None:
    tenant = rows.tenant()
    rows.job(tenant, hint_count=hint_count, hinted_ago_s=10)
    due = rows.job(tenant, hint_count=hint_count, hinted_ago_s=16)

    assert _hinted(roles) == [due]


@pytest.mark.parametrize(
    "fields",
    [
        {"run_after_s": 60},
        {"deadline_s": -1},
        {"cancel_by": "user"},
        {"status": "completed"},
    ],
)
def test_a_job_that_can_not_run_now_is_not_hinted(
    roles: Connections, rows: Rows, fields: dict[str, object]
) -> None:
    rows.job(rows.tenant(), **{"hinted_ago_s": 3_600, **fields})

    assert _hinted(roles) == []


def test_a_window_holds_twice_the_live_slots_per_pool_and_tier(
    roles: Connections, rows: Rows
) -> None:
    rows.worker(slots=25, pool="big", expires_s=600)
    rows.worker(slots=15, pool="big", expires_s=600)
    rows.worker(slots=99, pool="big", expires_s=-1)
    tenant = rows.tenant()
    for pool, tier in (("big", "default"), ("big", "flex"), ("small", "default")):
        for _ in range(100):
            rows.job(tenant, pool=pool, tier=tier, hinted_ago_s=60)

    hints = rehint(roles.worker)

    counts = [
        sum((hint["pool"], hint["service_tier"]) == key for hint in hints)
        for key in (("big", "default"), ("big", "flex"), ("small", "default"))
    ]
    assert counts == [80, 80, MIN_WINDOW]
    assert len(_hinted(roles)) == 20 + 20 + 100 - MIN_WINDOW


def test_tenants_take_turns_in_a_window(roles: Connections, rows: Rows) -> None:
    flood, *light = (rows.tenant() for _ in range(3))
    for _ in range(200):
        rows.job(flood, hinted_ago_s=60)
    theirs = {rows.job(tenant, hinted_ago_s=60) for tenant in light for _ in range(5)}

    hinted = set(_hinted(roles))

    assert theirs <= hinted
    assert len(hinted) == MIN_WINDOW


def test_looks_go_on_from_one_tenant_to_the_next_and_begin_again(
    roles: Connections, rows: Rows
) -> None:
    tenants = sorted(rows.tenant() for _ in range(3))

    found = [NOBODY]
    for _ in range(5):
        found.append(next_tenant(roles.worker, found[-1]))

    assert found == [NOBODY, *tenants, NOBODY, tenants[0]]


def test_a_job_behind_a_flood_is_found_from_its_tenant_on(roles: Connections, rows: Rows) -> None:
    flood, behind = sorted(rows.tenant() for _ in range(2))
    rows.connection.execute(
        "INSERT INTO jobs SELECT (jsonb_populate_record(j, jsonb_build_object('id', uuidv7()))).*"
        " FROM jobs j, generate_series(1, %s) WHERE j.id = %s",
        (MAX_SEEN, rows.job(flood)),
    )
    lost = rows.job(behind, hinted_ago_s=60)

    assert _hinted(roles) == []
    assert [row["id"] for row in rehint(roles.worker, start=behind)] == [lost]


def test_a_lane_gets_no_more_hints_than_it_misses_tickets(roles: Connections, rows: Rows) -> None:
    for _ in range(9):
        rows.job(rows.tenant(), hinted_ago_s=60)

    hints = [rehint(roles.worker, {LANE: num}) for num in (12, 9, 7)]

    assert [len(of_lane) for of_lane in hints] == [0, 0, 2]
    assert {hint["num_ready"] for hint in hints[-1]} == {9}


def test_a_lane_with_tickets_enough_takes_no_place_of_the_window(
    roles: Connections, rows: Rows
) -> None:
    for _ in range(MIN_WINDOW):
        rows.job(rows.tenant(), hinted_ago_s=60)
    lost = rows.job(rows.tenant(), hinted_ago_s=60)
    rows.connection.execute("UPDATE jobs SET lane = 4 WHERE id = %s", (lost,))

    assert [hint["id"] for hint in rehint(roles.worker, {LANE: MIN_WINDOW})] == [lost]


def test_a_hint_that_is_given_back_is_due_at_once(roles: Connections, rows: Rows) -> None:
    back = rows.job(rows.tenant())
    rows.job(rows.tenant())

    give_back(roles.worker, [back])

    assert _hinted(roles) == [back]


def test_a_job_that_can_not_be_hinted_holds_up_no_other(roles: Connections, rows: Rows) -> None:
    jobs = [rows.job(rows.tenant(), hinted_ago_s=60) for _ in range(5)]
    refuse(roles.owner, "jobs", "id", jobs[2])
    told: list[UUID] = []

    hints = rehint(roles.worker, set_aside=lambda job_id, _: told.append(job_id))
    others = rehint(roles.worker, aside=told)

    assert {hint["id"] for hint in hints} == {*jobs} - {jobs[2]}
    assert {hint["num_ready"] for hint in hints} == {5}
    assert (told, others) == ([jobs[2]], [])


def test_a_job_that_can_not_be_forgotten_holds_up_no_other(roles: Connections, rows: Rows) -> None:
    jobs = [rows.job(rows.tenant()) for _ in range(5)]
    refuse(roles.owner, "jobs", "id", jobs[2])

    give_back(roles.worker, jobs[:4])
    num_forgotten = forget_hints(roles.worker)

    assert num_forgotten == 1
    left = roles.owner.execute("SELECT id FROM jobs WHERE hinted_at IS NOT NULL").fetchall()
    assert [row["id"] for row in left] == [jobs[2]]


def test_rehinters_that_race_hint_each_job_once(
    database: DatabaseUrls, roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant()
    jobs = {rows.job(tenant, hinted_ago_s=60) for _ in range(50)}
    start = threading.Barrier(4)

    def rehinter(_: int) -> list[UUID]:
        with connect(database.worker, application_name="test") as connection:
            start.wait()
            return [row["id"] for _ in range(20) for row in rehint(connection)]

    with ThreadPoolExecutor(4) as threads:
        hinted = [job for found in threads.map(rehinter, range(4)) for job in found]

    assert sorted(hinted) == sorted(jobs)


def test_forgotten_hints_are_given_again_at_once(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant()
    jobs = {rows.job(tenant) for _ in range(10)}
    rows.job(tenant, status="completed")

    num_forgotten = forget_hints(roles.worker)

    assert num_forgotten == 10
    assert set(_hinted(roles)) == jobs


def test_only_the_hints_of_an_outage_are_forgotten(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant()
    rows.job(tenant, hinted_ago_s=12)
    during = rows.job(tenant, hinted_ago_s=3)

    forget_hints(roles.worker, within_s=10)

    assert _hinted(roles) == [during]


def test_a_large_backlog_is_forgotten_in_batches(
    roles: Connections, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.hints._FORGET_BATCH", 3)
    tenant = rows.tenant()
    for _ in range(10):
        rows.job(tenant)

    assert forget_hints(roles.worker) == 10


@pytest.mark.parametrize("start", [NOBODY, UUID(int=2**128 - 1)], ids=["first", "later"])
def test_a_job_that_runs_or_is_over_needs_no_ticket(
    roles: Connections, rows: Rows, start: UUID
) -> None:
    tenant, worker = rows.tenant(), rows.worker()
    lost = rows.job(tenant, hinted_ago_s=60)
    for status in ("in_progress", "completed"):
        runs = {"worker_id": worker} if status == "in_progress" else {}
        rows.job(tenant, hinted_ago_s=60, status=status, attempt=1, **runs)

    [hint] = rehint(roles.worker, start=start)

    assert (hint["id"], hint["num_ready"]) == (lost, 1)


LATER = UUID(int=2**128 - 1)  # behind all tenants


@pytest.mark.parametrize("start", [NOBODY, LATER], ids=["first", "later"])
def test_a_job_that_is_set_aside_needs_no_ticket(
    roles: Connections, rows: Rows, start: UUID
) -> None:
    aside, other = (rows.job(rows.tenant(), hinted_ago_s=60) for _ in range(2))

    [hint] = rehint(roles.worker, start=start, aside=[aside])

    assert (hint["id"], hint["num_ready"]) == (other, 1)


def test_workers_that_drain_make_no_window_wider(roles: Connections, rows: Rows) -> None:
    rows.worker(slots=99, expires_s=600)
    tenant = rows.tenant()
    rows.connection.execute("UPDATE worker_leases SET draining = true")
    for _ in range(MIN_WINDOW + 3):
        rows.job(tenant, hinted_ago_s=60)

    assert len(_hinted(roles)) == MIN_WINDOW


def test_of_a_tenants_jobs_the_one_that_is_due_first_is_hinted_first(
    roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant()
    rows.job(tenant, hinted_ago_s=60, deadline_s=900)
    urgent = rows.job(tenant, hinted_ago_s=60, deadline_s=60)
    rows.job(tenant, hinted_ago_s=60, deadline_s=500)

    assert [row["id"] for row in rehint(roles.worker, {LANE: 2})] == [urgent]


def test_jobs_of_a_lane_with_tickets_enough_cost_their_tenant_no_turn(
    roles: Connections, rows: Rows
) -> None:
    one, other = rows.tenant(), rows.tenant()
    rows.job(one, hinted_ago_s=60, deadline_s=60)
    jobs = [rows.job(tenant, hinted_ago_s=60) for tenant in (one, other)]
    rows.connection.execute("UPDATE jobs SET lane = 4 WHERE id = ANY(%s)", (jobs,))

    hints = rehint(roles.worker, {LANE: 1, (*LANE[:2], 4): 1})

    assert [row["id"] for row in hints] == jobs[:1]


def test_a_lane_behind_a_flooded_one_is_looked_at(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant()
    rows.connection.execute(
        "INSERT INTO jobs SELECT (jsonb_populate_record(j, jsonb_build_object('id', uuidv7()))).*"
        " FROM jobs j, generate_series(1, %s) WHERE j.id = %s",
        (MAX_SEEN, rows.job(tenant)),
    )
    lost = rows.job(tenant, hinted_ago_s=60)
    rows.connection.execute("UPDATE jobs SET lane = 4 WHERE id = %s", (lost,))

    for start in (LATER, NOBODY):
        assert [row["id"] for row in rehint(roles.worker, start=start)] == [lost]
        rows.connection.execute("UPDATE jobs SET hinted_at = NULL WHERE id = %s", (lost,))


def test_while_another_copy_looks_nothing_is_hinted(roles: Connections, rows: Rows) -> None:
    rows.job(rows.tenant(), hinted_ago_s=60)
    with roles.owner.transaction():
        roles.owner.execute("SELECT pg_advisory_xact_lock(%s)", (0x68696E74,))
        assert _hinted(roles) == []

    assert len(_hinted(roles)) == 1


def test_a_job_that_is_claimed_while_it_is_hinted_is_not(roles: Connections, rows: Rows) -> None:
    job = rows.job(rows.tenant(), hinted_ago_s=60)
    waits = "SELECT FROM pg_locks WHERE pid = %s AND NOT granted"
    with ThreadPoolExecutor(1) as thread:
        with roles.owner.transaction():
            roles.owner.execute(
                "UPDATE jobs SET status = 'in_progress', worker_id = gen_random_uuid()"
                " WHERE id = %s",
                (job,),
            )
            hinted = thread.submit(_hinted, roles)
            pid = roles.worker.info.backend_pid
            wait_until(lambda: roles.owner.execute(waits, (pid,)).fetchone() is not None)
        assert hinted.result() == []


def test_hints_of_jobs_that_run_are_not_given_back(roles: Connections, rows: Rows) -> None:
    job = rows.running_job(rows.tenant(), rows.worker())

    give_back(roles.worker, [job])
    assert forget_hints(roles.worker) == 0

    assert rows.of_job(job)["hinted_at"] is not None


def test_hints_of_jobs_that_somebody_holds_are_left(roles: Connections, rows: Rows) -> None:
    held, free = (rows.job(rows.tenant()) for _ in range(2))
    roles.worker.execute("SET lock_timeout = '2s'")
    with roles.owner.transaction():
        roles.owner.execute("SELECT FROM jobs WHERE id = %s FOR UPDATE", (held,))
        assert forget_hints(roles.worker) == 1

    assert rows.of_job(held)["hinted_at"] is not None
    assert rows.of_job(free)["hinted_at"] is None
