"""The reaper: what becomes of jobs whose worker died, whose time is up, or that were cancelled."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest

from billing import ledger
from billing.usage import settle_jobs
from cli.stack.database import DatabaseUrls
from store.aside import FIRST_S
from store.pools import connect
from store.reaping import reap_lost, reap_waiting
from tasks.stream import SEQUENCE_JUMP
from tests.support.poison import refuse
from tests.support.roles import Connections
from tests.support.rows import Rows
from workers.maintenance.reaper import MAX_TRIES, Reaper

CREDIT = 1_000_000


@pytest.fixture
def dead_worker(rows: Rows) -> UUID:
    return rows.worker(expires_s=-0.1)


def _result(rows: Rows, job: UUID) -> dict[str, object]:
    return rows.one("SELECT output, last_seq, event_log FROM job_results WHERE job_id = %s", job)


def test_a_job_of_a_lost_worker_is_queued_again_at_once(
    roles: Connections, rows: Rows, dead_worker: UUID
) -> None:
    job = rows.running_job(rows.tenant(), dead_worker, produced="abc")

    [reaped] = reap_lost(roles.worker)

    row = rows.of_job(job)
    attempt = rows.one("SELECT * FROM job_attempts")
    assert (reaped.job_id, reaped.verdict, reaped.status) == (job, "requeue", None)
    assert (row["status"], row["fail_count"], row["worker_id"]) == ("queued", 1, None)
    assert (row["hinted_at"], row["reason"]) == (None, "worker_lost")
    assert rows.one("SELECT run_after <= now() AS is_due FROM jobs")["is_due"]
    assert (attempt["outcome"], attempt["checkpoint_text"]) == ("lost", "abc")
    assert reap_lost(roles.worker) == []


def test_the_second_loss_waits_before_the_next_attempt(
    roles: Connections, rows: Rows, dead_worker: UUID
) -> None:
    rows.running_job(rows.tenant(), dead_worker, attempt=2, fail_count=1)

    reap_lost(roles.worker)

    delay = rows.one("SELECT extract(epoch FROM run_after - now())::float AS s FROM jobs")["s"]
    assert 1.0 < delay <= 2.0


def test_a_job_of_a_worker_without_a_lease_is_lost_too(roles: Connections, rows: Rows) -> None:
    job = rows.running_job(rows.tenant(), uuid4())

    reap_lost(roles.worker)

    assert rows.of_job(job)["status"] == "queued"


def test_a_job_of_a_live_worker_is_left_alone(roles: Connections, rows: Rows) -> None:
    rows.running_job(rows.tenant(), rows.worker(), deadline_s=-1, cancel_by="user")

    assert reap_lost(roles.worker) == []


def test_the_third_loss_fails_and_nobody_is_charged(
    roles: Connections, rows: Rows, dead_worker: UUID
) -> None:
    tenant = rows.tenant(credit_micros=CREDIT)
    job = rows.running_job(tenant, dead_worker, attempt=3, fail_count=2, produced="abc")

    reap_lost(roles.worker)
    settle_jobs(roles.billing)

    row = rows.of_job(job)
    assert (row["status"], row["reason"], row["fail_count"]) == ("failed", "worker_lost", 3)
    assert (row["error_code"], row["error_retryable"]) == ("worker_lost", True)
    assert row["error_message"]
    assert row["finished_at"] is not None
    assert (row["cost_micros"], row["output_tokens"]) == (0, 3)
    outcome = rows.one("SELECT * FROM job_outcomes WHERE job_id = %s", job)
    assert (outcome["payer"], outcome["output_tokens"]) == ("platform", 3)
    assert _result(rows, job) == {"output": [], "last_seq": 4 * SEQUENCE_JUMP, "event_log": None}
    assert rows.account(tenant) == (CREDIT, 0)
    assert ledger.verify(roles.owner).ok


@pytest.mark.parametrize(
    ("who", "charged"), [("user", ("tenant", 100 + 2 * 3)), ("operator", ("platform", 0))]
)
def test_a_cancel_that_its_worker_never_saw_ends_the_job(
    roles: Connections, rows: Rows, dead_worker: UUID, who: str, charged: tuple[str, int]
) -> None:
    payer, cost = charged
    tenant = rows.tenant(credit_micros=CREDIT)
    job = rows.running_job(tenant, dead_worker, produced="abc", cancel_by=who)

    reap_lost(roles.worker)
    settle_jobs(roles.billing)

    row = rows.of_job(job)
    assert (row["status"], row["reason"]) == ("cancelled", f"cancelled_by_{who}")
    assert (row["cost_micros"], row["error_code"]) == (cost, None)
    assert rows.one("SELECT payer FROM job_outcomes")["payer"] == payer
    assert _result(rows, job)["output"] == [{"index": 0, "text": "abc", "finish_reason": None}]
    assert rows.account(tenant) == (CREDIT - cost, 0)
    assert ledger.verify(roles.owner).ok


def test_a_lost_job_past_its_deadline_keeps_what_it_produced(
    roles: Connections, rows: Rows, dead_worker: UUID
) -> None:
    tenant = rows.tenant(credit_micros=CREDIT)
    job = rows.running_job(tenant, dead_worker, produced="abc", deadline_s=-1)

    reap_lost(roles.worker)
    settle_jobs(roles.billing)

    row = rows.of_job(job)
    assert (row["status"], row["reason"]) == ("incomplete", "deadline_exceeded")
    assert row["error_code"] is None
    assert _result(rows, job)["output"] == [{"index": 0, "text": "abc", "finish_reason": "length"}]
    assert rows.account(tenant) == (CREDIT - 106, 0)


def test_every_choice_of_a_lost_job_keeps_what_it_produced(
    roles: Connections, rows: Rows, dead_worker: UUID
) -> None:
    tenant = rows.tenant(credit_micros=CREDIT)
    splits = [[2, 2, None], [0, 0, None], [3, 3, "stop"]]
    job = rows.running_job(
        tenant, dead_worker, produced="é🦊cde", splits=splits, num_choices=3, deadline_s=-1
    )

    reap_lost(roles.worker)
    settle_jobs(roles.billing)

    assert _result(rows, job)["output"] == [
        {"index": 0, "text": "é🦊", "finish_reason": "length"},
        {"index": 1, "text": "", "finish_reason": "length"},
        {"index": 2, "text": "cde", "finish_reason": "stop"},
    ]
    assert rows.of_job(job)["output_tokens"] == 5
    assert rows.account(tenant) == (CREDIT - 110, 0)


def test_choices_of_a_job_cancelled_before_its_first_checkpoint_are_empty(
    roles: Connections, rows: Rows, dead_worker: UUID
) -> None:
    job = rows.running_job(rows.tenant(), dead_worker, num_choices=2, cancel_by="user")

    reap_lost(roles.worker)

    assert _result(rows, job)["output"] == [
        {"index": index, "text": "", "finish_reason": None} for index in range(2)
    ]


def test_a_lost_job_past_its_deadline_that_produced_nothing_fails_for_free(
    roles: Connections, rows: Rows, dead_worker: UUID
) -> None:
    tenant = rows.tenant(credit_micros=CREDIT)
    job = rows.running_job(tenant, dead_worker, deadline_s=-1)

    reap_lost(roles.worker)
    settle_jobs(roles.billing)

    row = rows.of_job(job)
    assert (row["status"], row["error_code"]) == ("failed", "deadline_exceeded")
    assert rows.one("SELECT payer FROM job_outcomes")["payer"] == "nobody"
    assert rows.account(tenant) == (CREDIT, 0)


def test_the_furthest_checkpoint_counts_whichever_attempt_wrote_it(
    roles: Connections, rows: Rows, dead_worker: UUID
) -> None:
    tenant = rows.tenant()
    job = rows.running_job(tenant, dead_worker, attempt=2, fail_count=1, cancel_by="user")
    rows.attempt(job, tenant, 1, uuid4(), produced="abcde", outcome="lost")

    reap_lost(roles.worker)

    assert rows.of_job(job)["output_tokens"] == 5
    assert _result(rows, job)["last_seq"] == 3 * SEQUENCE_JUMP


def test_a_queued_job_past_its_deadline_fails_for_free(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant(credit_micros=CREDIT)
    job, other = rows.job(tenant, deadline_s=-0.1), rows.job(tenant)

    [reaped] = reap_waiting(roles.worker)
    settle_jobs(roles.billing)

    row = rows.of_job(job)
    assert reaped.job_id == job
    assert (row["status"], row["reason"], row["fail_count"]) == ("failed", "deadline_exceeded", 0)
    assert row["error_retryable"] is True
    assert rows.of_job(other)["status"] == "queued"
    assert rows.account(tenant)[0] == CREDIT
    assert ledger.verify(roles.owner).ok


def test_a_job_cancelled_between_two_attempts_ends_with_what_it_produced(
    roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant(credit_micros=CREDIT)
    job = rows.job(tenant, attempt=1, fail_count=1, cancel_by="user")
    rows.attempt(job, tenant, 1, uuid4(), produced="abc", outcome="lost")

    reap_waiting(roles.worker)

    row = rows.of_job(job)
    assert (row["status"], row["output_tokens"], row["cost_micros"]) == ("cancelled", 3, 106)


def test_reapers_that_race_reap_each_job_once(
    database: DatabaseUrls, roles: Connections, rows: Rows, dead_worker: UUID
) -> None:
    tenant = rows.tenant()
    jobs = {rows.running_job(tenant, dead_worker) for _ in range(300)}
    start = threading.Barrier(4)

    def reaper(_: int) -> list[UUID]:
        found = []
        with connect(database.worker, application_name="test") as connection:
            start.wait()
            for _ in range(60):
                found += [job.job_id for job in reap_lost(connection, limit=10)]
        return found

    with ThreadPoolExecutor(4) as threads:
        reaped = [job for found in threads.map(reaper, range(4)) for job in found]

    assert sorted(reaped) == sorted(jobs)
    assert rows.one("SELECT min(fail_count) AS least, max(fail_count) AS most FROM jobs") == {
        "least": 1,
        "most": 1,
    }


def test_a_job_that_its_worker_just_finished_is_not_reaped(
    database: DatabaseUrls, roles: Connections, rows: Rows, dead_worker: UUID
) -> None:
    """The worker commits while the reaper looks: the row's lock decides, not the snapshot."""
    job = rows.running_job(rows.tenant(), dead_worker)
    with roles.owner.transaction():
        roles.owner.execute(
            "UPDATE jobs SET status = 'completed', worker_id = NULL, finished_at = now()"
            " WHERE id = %s",
            (job,),
        )
        held = reap_lost(roles.worker)

    assert held == []
    assert reap_lost(roles.worker) == []
    assert rows.of_job(job)["status"] == "completed"


def test_leases_dead_for_a_day_are_deleted(roles: Connections, rows: Rows) -> None:
    rows.worker(expires_s=-90_000)
    kept = {rows.worker(expires_s=-3_600), rows.worker()}

    Reaper().step(roles.worker)

    left = roles.owner.execute("SELECT worker_id FROM worker_leases").fetchall()
    assert {row["worker_id"] for row in left} == kept


def test_a_lease_that_can_not_be_forgotten_stops_neither_the_reaper_nor_other_leases(
    roles: Connections, rows: Rows, dead_worker: UUID
) -> None:
    """Else each step would look like an outage, after which workers have grace."""
    stuck, other = (rows.worker(expires_s=-90_000) for _ in range(2))
    refuse(roles.owner, "worker_leases", "worker_id", stuck, event="DELETE")
    clock = _Clock()
    reaper = Reaper(clock)
    for _ in range(4):
        reaper.step(roles.worker)
        clock.now += 2.0
    job = rows.running_job(rows.tenant(), dead_worker)

    reaper.step(roles.worker)

    assert rows.of_job(job)["status"] == "queued"
    left = roles.owner.execute("SELECT worker_id FROM worker_leases").fetchall()
    assert {row["worker_id"] for row in left} == {stuck, dead_worker}
    assert other not in {row["worker_id"] for row in left}


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_after_an_outage_workers_may_beat_before_the_reaper_acts(
    roles: Connections, rows: Rows, dead_worker: UUID
) -> None:
    job = rows.running_job(rows.tenant(), dead_worker)
    clock = _Clock()
    reaper = Reaper(clock)
    clock.now += 30  # Postgres was away

    reaper.step(roles.worker)
    assert rows.of_job(job)["status"] == "in_progress"

    for _ in range(7):
        clock.now += 1
        reaper.step(roles.worker)
    assert rows.of_job(job)["status"] == "in_progress"

    clock.now += 1.1
    reaper.step(roles.worker)
    assert rows.of_job(job)["status"] == "queued"


def test_a_short_pause_needs_no_grace(roles: Connections, rows: Rows, dead_worker: UUID) -> None:
    job = rows.running_job(rows.tenant(), dead_worker)
    clock = _Clock()
    reaper = Reaper(clock)
    clock.now += 4.9

    reaper.step(roles.worker)

    assert rows.of_job(job)["status"] == "queued"


def test_a_job_that_can_not_be_reaped_holds_up_none_of_its_sort(
    roles: Connections, rows: Rows, dead_worker: UUID
) -> None:
    tenant = rows.tenant()
    lost = [rows.running_job(tenant, dead_worker) for _ in range(5)]
    late = [rows.job(tenant, deadline_s=-1.0) for _ in range(5)]
    cancelled = [rows.job(tenant, attempt=1, cancel_by="user") for _ in range(5)]
    for number, ids in enumerate((lost, late, cancelled)):
        refuse(roles.owner, "jobs", "id", ids[0], name=f"refuse_{number}")
    clock = _Clock()

    Reaper(clock).step(roles.worker)

    states = [[rows.of_job(job)["status"] for job in ids] for ids in (lost, late, cancelled)]
    assert states == [
        ["in_progress", *["queued"] * 4],
        ["queued", *["failed"] * 4],
        ["queued", *["cancelled"] * 4],
    ]


def test_a_job_that_can_not_be_reaped_is_set_aside_and_tried_again(
    roles: Connections, rows: Rows, dead_worker: UUID
) -> None:
    tenant = rows.tenant()
    stuck, behind = (rows.running_job(tenant, dead_worker) for _ in range(2))
    refuse(roles.owner, "jobs", "id", stuck)
    clock = _Clock()
    reaper = Reaper(clock)

    for _ in range(2):
        reaper.step(roles.worker)
    assert [rows.of_job(job)["status"] for job in (stuck, behind)] == ["in_progress", "queued"]

    roles.owner.execute("DROP TRIGGER refuse ON jobs")
    reaper.step(roles.worker)
    assert rows.of_job(stuck)["status"] == "in_progress"
    clock.now += FIRST_S + 0.1
    reaper.step(roles.worker)
    assert rows.of_job(stuck)["status"] == "queued"


def test_a_job_whose_checkpoint_can_not_be_read_ends_without_it(
    roles: Connections, rows: Rows, dead_worker: UUID
) -> None:
    job = rows.running_job(rows.tenant(), dead_worker, produced="x", cancel_by="user")
    roles.owner.execute("""UPDATE job_attempts SET checkpoint_splits = '"no list"'""")
    clock = _Clock()
    reaper = Reaper(clock)

    for _ in range(MAX_TRIES):
        assert rows.of_job(job)["status"] == "in_progress"
        reaper.step(roles.worker)
        clock.now += 4.5

    assert rows.of_job(job)["status"] == "cancelled"
    outcome = rows.one("SELECT payer, output_tokens FROM job_outcomes WHERE job_id = %s", job)
    assert outcome == {"payer": "nobody", "output_tokens": 0}


@pytest.mark.parametrize(
    "fields", [{"cancel_by": "user"}, {"cancel_by": "operator"}, {"deadline_s": -1.0}]
)
@pytest.mark.parametrize("attempt", [1, 2])
def test_an_end_without_its_producer_takes_numbers_that_no_attempt_had(
    roles: Connections, rows: Rows, fields: dict[str, Any], attempt: int
) -> None:
    """The worker published 150 events; its last checkpoint is older."""
    dead = rows.worker(expires_s=-1)
    running = rows.running_job(rows.tenant(), dead, produced="x" * 126, attempt=attempt, **fields)
    between = rows.job(rows.tenant(), attempt=attempt, **fields)

    reap_lost(roles.worker)
    reap_waiting(roles.worker)

    for job in (running, between):
        assert _result(rows, job)["last_seq"] == (attempt + 1) * SEQUENCE_JUMP


def test_a_cancel_outranks_the_deadline(roles: Connections, rows: Rows) -> None:
    dead, tenant = rows.worker(expires_s=-1), rows.tenant()
    jobs = [
        rows.running_job(tenant, dead, produced="x", cancel_by="user", deadline_s=-1.0),
        rows.job(tenant, attempt=1, cancel_by="user", deadline_s=-1.0),
    ]

    reap_lost(roles.worker)
    reap_waiting(roles.worker)

    assert [rows.of_job(job)["reason"] for job in jobs] == ["cancelled_by_user"] * 2


@pytest.mark.parametrize("who", ["user", "operator"])
def test_nobody_pays_for_what_was_not_produced(roles: Connections, rows: Rows, who: str) -> None:
    job = rows.running_job(rows.tenant(), rows.worker(expires_s=-1), cancel_by=who)

    reap_lost(roles.worker)

    outcome = rows.one("SELECT payer FROM job_outcomes WHERE job_id = %s", job)
    assert outcome["payer"] == ("nobody" if who == "user" else "platform")
    assert rows.of_job(job)["cost_micros"] == 0


def test_a_running_job_that_can_not_be_reaped_holds_up_none_in_the_queue(
    roles: Connections, rows: Rows
) -> None:
    bad = rows.running_job(rows.tenant(), rows.worker(expires_s=-1))
    late = rows.job(rows.tenant(), deadline_s=-1)
    rows.refuse_updates("jobs", f"NEW.id = '{bad}'")

    Reaper().step(roles.worker)

    assert rows.of_job(late)["status"] == "failed"
    assert rows.of_job(bad)["status"] == "in_progress"
