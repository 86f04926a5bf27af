"""A worker that stops: what it has claimed ends or goes back, whoever claimed it and however far it
has come, and no job loses an attempt by it.
"""

from __future__ import annotations

import threading
import time
from typing import Any
from uuid import UUID

import pytest

from store.reaping import reap_lost
from tests.integration.worker.conftest import InProcessWorker, MakeWorker
from tests.support.jobs import Jobs
from tests.support.waiting import wait_until
from workers.inference import bootstrap
from workers.inference.drain import Drain
from workers.inference.engine.protocol import EngineRequest
from workers.inference.engine.stub import expected_text
from workers.inference.handler import IdleLook, generate
from workers.inference.heartbeat import ABANDON_S, Heartbeat
from workers.inference.settings import WorkerSettings

LONG = {"max_output_tokens": 8_000, "deadline_s": 3_000.0}


@pytest.fixture
def slow(make_worker: MakeWorker) -> InProcessWorker:
    """Its jobs outlast every test."""
    return make_worker(step_ms=5.0)


def given_back(jobs: Jobs, job_id: UUID) -> dict[str, Any]:
    """A queued job that lost nothing; its row."""
    row = jobs.row(job_id)
    state = (row["status"], row["reason"], row["fail_count"], row["worker_id"], row["hinted_at"])
    assert state == ("queued", "worker_drained", 0, None, None)
    attempts = jobs.query("SELECT outcome, ended_at IS NULL AS runs FROM job_attempts")
    assert attempts == [{"outcome": "drained", "runs": False}]
    return row


def lease_of(jobs: Jobs, worker: InProcessWorker) -> dict[str, Any]:
    (lease,) = jobs.query(
        "SELECT * FROM worker_leases WHERE worker_id = %s", (worker.runtime.worker_id,)
    )
    return lease


def test_drain_is_announced_so_that_no_claim_under_the_lease_succeeds(
    worker: InProcessWorker, jobs: Jobs
) -> None:
    job_id = jobs.add()

    worker.drain()

    assert lease_of(jobs, worker)["draining"]
    assert worker.claim(job_id) is None


def test_stop_waits_for_a_job_that_was_claimed_without_a_ticket(
    slow: InProcessWorker, jobs: Jobs
) -> None:
    job_id = jobs.add(**LONG)
    look = IdleLook(slow.runtime, interval_s=0.01)
    look.start()
    wait_until(lambda: len(slow.log(job_id)) > 1)

    slow.drain()
    look.stop()

    given_back(jobs, job_id)


def test_job_that_ends_in_time_is_finished_by_the_worker_that_stops(
    make_worker: MakeWorker, jobs: Jobs
) -> None:
    worker = make_worker(step_ms=5.0)
    worker.runtime.settings = WorkerSettings(drain_s=60)
    job_id = jobs.add(max_output_tokens=50)
    worker.begin(job_id)

    worker.drain()

    row = jobs.row(job_id)
    assert (row["status"], row["attempt"]) == ("incomplete", 1)
    assert row["output"][0]["text"] == expected_text(7, 50)


def test_job_that_reaches_the_engine_after_the_end_of_the_drain_goes_back_all_the_same(
    slow: InProcessWorker, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_aborted = threading.Event()
    submit, abort = slow.engine.submit, slow.engine.abort

    def note_abort(request_id: str) -> None:
        is_aborted.set()
        abort(request_id)

    def submit_late(request: EngineRequest) -> None:
        is_aborted.wait(10)
        submit(request)

    monkeypatch.setattr(slow.engine, "abort", note_abort)
    monkeypatch.setattr(slow.engine, "submit", submit_late)
    job_id = jobs.add(**LONG)
    slow.begin(job_id)

    slow.drain()

    given_back(jobs, job_id)


def test_claim_that_began_before_the_stop_is_waited_for(slow: InProcessWorker, jobs: Jobs) -> None:
    job_id = jobs.add(**LONG)
    assert slow.runtime.begin_attempt()
    claimed = slow.claim(job_id)
    assert claimed is not None
    drain = Drain(slow.runtime)

    drain.begin()
    slow.run_claimed(claimed)
    slow.runtime.end_attempt()
    drain.wait()

    given_back(jobs, job_id)


def test_second_signal_gives_back_at_once_what_the_first_waits_for(
    slow: InProcessWorker, jobs: Jobs
) -> None:
    slow.runtime.settings = WorkerSettings(drain_s=600)
    job_id = jobs.add(**LONG)
    thread = slow.begin(job_id)
    wait_until(lambda: len(slow.log(job_id)) > 1)
    drain = Drain(slow.runtime)

    drain.begin()
    wait_until(lambda: lease_of(jobs, slow)["draining"])
    is_waited_for = thread.is_alive()
    drain.begin(is_urgent=True)
    drain.wait()

    assert is_waited_for
    given_back(jobs, job_id)


def test_jobs_of_an_engine_that_hangs_go_back_with_the_lease(
    slow: InProcessWorker, jobs: Jobs
) -> None:
    job_id = jobs.add(**LONG)
    thread = slow.begin(job_id)
    wait_until(lambda: jobs.query("SELECT checkpoint_seq AS s FROM job_attempts")[0]["s"] > 0)

    slow.engine.hang()
    Drain(slow.runtime, end_s=0.2).wait()
    thread.join(timeout=10)
    slow.heartbeat.stop()
    slow.engine.release()

    assert not thread.is_alive()
    given_back(jobs, job_id)
    (attempt,) = jobs.query("SELECT checkpoint_text AS text FROM job_attempts")
    assert attempt["text"]
    assert jobs.query("SELECT 1 FROM worker_leases") == []


def test_job_whose_claim_got_no_answer_goes_back_with_the_lease(
    worker: InProcessWorker, jobs: Jobs
) -> None:
    job_id = jobs.add()
    assert worker.claim(job_id) is not None

    worker.drain()
    worker.heartbeat.stop()

    given_back(jobs, job_id)


def test_finished_jobs_stay_finished_when_the_lease_is_given_up(
    worker: InProcessWorker, jobs: Jobs
) -> None:
    job_id = jobs.add()
    worker.run(job_id)

    worker.heartbeat.stop()

    assert jobs.row(job_id)["status"] == "incomplete"
    assert jobs.query("SELECT outcome FROM job_attempts") == [{"outcome": "ok"}]


def test_tickets_run_until_the_stop_and_are_refused_afterwards(
    worker: InProcessWorker, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "_runtime", worker.runtime)
    before, after = jobs.add(deadline_s=60.0), jobs.add()

    generate(before.hex)
    num_attempts = worker.runtime.num_attempts
    worker.runtime.draining.set()
    generate(after.hex)

    assert num_attempts == 0
    assert jobs.row(before)["status"] == "incomplete"
    assert (jobs.row(after)["status"], jobs.row(after)["attempt"]) == ("queued", 0)


def test_new_lease_of_a_worker_that_drains_is_a_draining_one(
    worker: InProcessWorker, jobs: Jobs
) -> None:
    old = worker.runtime.worker_id
    worker.drain()

    jobs.query("DELETE FROM worker_leases RETURNING 1")
    wait_until(lambda: worker.runtime.worker_id != old, what="a new lease")

    assert lease_of(jobs, worker)["draining"]


def test_jobs_under_a_lost_lease_go_to_the_reaper(slow: InProcessWorker, jobs: Jobs) -> None:
    """A new lease under the old id would hold them for ever: nobody runs them any more."""
    job_id = jobs.add(**LONG)
    thread = slow.begin(job_id)
    wait_until(lambda: len(slow.log(job_id)) > 1)

    jobs.query("DELETE FROM worker_leases RETURNING 1")
    thread.join(timeout=10)
    wait_until(lambda: jobs.query("SELECT 1 FROM worker_leases"), what="a new lease")
    with jobs.connect() as connection:
        reaped = reap_lost(connection)

    assert not thread.is_alive()
    assert [(job.job_id, job.verdict) for job in reaped] == [(job_id, "requeue")]


def test_jobs_given_up_in_a_long_outage_of_postgres_leave_their_lease_behind(
    slow: InProcessWorker, jobs: Jobs
) -> None:
    """A beat after the outage would hold jobs that nobody runs."""
    old = slow.runtime.worker_id
    thread = slow.begin(jobs.add(**LONG))
    wait_until(slow.runtime.running)
    late = Heartbeat(slow.runtime)

    late._abandon_if_late(time.monotonic() + ABANDON_S + 1)
    thread.join(timeout=10)

    assert not thread.is_alive()
    assert slow.runtime.worker_id != old


def test_worker_that_runs_nothing_gives_nothing_up_in_an_outage(worker: InProcessWorker) -> None:
    old = worker.runtime.worker_id
    late = Heartbeat(worker.runtime)

    late._abandon_if_late(time.monotonic() + ABANDON_S + 1)

    assert worker.runtime.worker_id == old


def test_jobs_outlive_an_outage_shorter_than_the_limit(slow: InProcessWorker, jobs: Jobs) -> None:
    old = slow.runtime.worker_id
    thread = slow.begin(jobs.add(**LONG))
    wait_until(slow.runtime.running)
    punctual = Heartbeat(slow.runtime)

    punctual._abandon_if_late(time.monotonic() + ABANDON_S - 10)

    assert thread.is_alive()
    assert slow.runtime.worker_id == old
