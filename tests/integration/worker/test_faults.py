"""What a fault costs: a failed attempt at most. No worker goes on holding a job it doesn't run."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery.worker import state as celery_state

from store.attempts import Claimed, ask_cancel
from store.reaping import reap_lost
from tests.integration.worker.conftest import InProcessWorker, MakeWorker, num_attempts
from tests.support.jobs import Jobs
from tests.support.services import Services
from tests.support.waiting import wait_until
from workers.inference import handler, publisher, run_job
from workers.inference.engine import stub
from workers.inference.engine.errors import EngineError
from workers.inference.engine.scheduler import Scheduler
from workers.inference.engine.stub import expected_text
from workers.inference.handler import IdleLook


@pytest.fixture
def busy(make_worker: MakeWorker, jobs: Jobs) -> InProcessWorker:
    """A worker whose only slot is taken."""
    worker = make_worker(max_num_seqs=1, step_ms=2.0)
    job_id = jobs.add(max_output_tokens=8_000, deadline_s=3_000.0)
    worker.begin(job_id)
    wait_until(lambda: len(worker.log(job_id)) > 1)
    return worker


def outcome(jobs: Jobs, job_id: object) -> dict[str, Any]:
    (row,) = jobs.query("SELECT * FROM job_outcomes WHERE job_id = %s", (job_id,))
    return row


def test_claimed_job_that_nobody_runs_goes_to_the_reaper(
    make_worker: MakeWorker, jobs: Jobs
) -> None:
    """The claim was committed and its answer lost."""
    worker = make_worker(orphan_s=0.5)
    job_id = jobs.add()
    assert worker.claim(job_id) is not None

    wait_until(
        lambda: jobs.row(job_id)["worker_id"] != worker.runtime.worker_id, what="its disowning"
    )
    with jobs.connect() as connection:
        (reaped,) = reap_lost(connection)

    assert (reaped.job_id, reaped.verdict) == (job_id, "requeue")


def test_job_that_runs_is_not_taken_for_an_orphan(make_worker: MakeWorker, jobs: Jobs) -> None:
    worker = make_worker(step_ms=5.0, orphan_s=0.0)
    job_id = jobs.add(max_output_tokens=500)

    worker.run(job_id)

    assert jobs.row(job_id)["attempt"] == 1
    assert jobs.row(job_id)["output"][0]["text"] == expected_text(7, 500)


def test_request_the_worker_does_not_understand_is_tried_again_and_then_failed(
    worker: InProcessWorker, jobs: Jobs
) -> None:
    before = num_attempts()
    patient = jobs.add(sampling={"from_a_newer_release": 1}, max_fails=2)
    worker.run(patient)
    after_one = jobs.row(patient)
    hopeless = jobs.add(sampling={"from_a_newer_release": 1}, max_fails=1)

    assert num_attempts() - before == {"error": 1}
    worker.run(hopeless)

    assert (after_one["status"], after_one["fail_count"]) == ("queued", 1)
    row = jobs.row(hopeless)
    assert (row["status"], row["reason"], row["output"]) == ("failed", "engine_error", [])
    assert outcome(jobs, hopeless)["payer"] == "platform"


def test_a_request_that_the_engine_refuses_fails_by_its_own_fault(
    worker: InProcessWorker, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_request: object) -> None:
        raise EngineError("invalid_prompt", "The prompt holds no tokens.", retryable=False)

    monkeypatch.setattr(worker.engine, "submit", refuse)
    job_id = jobs.add()

    worker.run(job_id)

    row = jobs.row(job_id)
    assert (row["status"], row["reason"], row["error_code"]) == (
        "failed",
        "engine_error",
        "invalid_prompt",
    )
    assert row["error_retryable"] is False
    assert outcome(jobs, job_id)["payer"] == "platform"


def test_engine_that_does_not_answer_costs_the_attempt(
    make_worker: MakeWorker, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_job, "DEADLINE_GRACE_S", 0.2)
    worker = make_worker(step_ms=1.0)
    job_id = jobs.add(deadline_s=1.0, max_output_tokens=6_000)
    thread = worker.begin(job_id)
    wait_until(lambda: len(worker.log(job_id)) > 3)

    worker.engine.hang()
    thread.join(timeout=10)
    worker.engine.release()

    row = jobs.row(job_id)
    assert (row["status"], row["fail_count"], row["reason"]) == ("queued", 1, "engine_error")


def test_an_engine_that_gave_up_ends_its_worker_which_claims_nothing_more(
    make_worker: MakeWorker, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would take one job after the other, and fail each."""
    monkeypatch.setattr(celery_state, "should_stop", None)
    worker = make_worker()

    def fail(_self: Scheduler) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Scheduler, "schedule", fail)
    worker.run(jobs.add())

    wait_until(lambda: celery_state.should_stop == 1, what="the end of the worker")
    assert not worker.runtime.begin_attempt()
    assert not worker.runtime.draining.is_set()


def test_a_stop_that_ends_the_engine_is_no_fault_of_it(
    make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(celery_state, "should_stop", None)
    worker = make_worker()
    worker.drain()
    worker.engine.shutdown()

    worker.heartbeat._end_without_engine()

    assert celery_state.should_stop is None


def test_nul_in_the_output_is_stored_as_a_replacement(
    worker: InProcessWorker, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stub, "token_text", lambda _: "\0")
    job_id = jobs.add(max_output_tokens=3)

    worker.run(job_id)

    assert jobs.row(job_id)["output"][0]["text"] == "\N{REPLACEMENT CHARACTER}" * 3


def test_job_cancelled_before_its_first_token_costs_nothing(
    busy: InProcessWorker, jobs: Jobs
) -> None:
    job_id = jobs.add()
    thread = busy.begin(job_id)
    wait_until(lambda: busy.runtime.find(job_id))

    with jobs.connect() as connection:
        ask_cancel(connection, job_id, by="user")
    thread.join(timeout=10)

    row = jobs.row(job_id)
    assert (row["status"], row["cost_micros"], row["output_tokens"]) == ("cancelled", 0, 0)
    assert outcome(jobs, job_id)["payer"] == "nobody"


def test_deadline_before_the_first_token_fails_the_job_for_free(
    busy: InProcessWorker, jobs: Jobs
) -> None:
    job_id = jobs.add(deadline_s=0.5)

    busy.run(job_id)

    row = jobs.row(job_id)
    assert (row["status"], row["reason"], row["cost_micros"]) == ("failed", "deadline_exceeded", 0)
    assert (row["error_code"], row["error_retryable"]) == ("deadline_exceeded", True)
    assert row["output"] == []
    assert outcome(jobs, job_id)["payer"] == "nobody"


@pytest.fixture
def idle_look(
    make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[IdleLook, list[Claimed]]]:
    """Looks all the time; the jobs it claims are stuck before they count as running."""
    claimed: list[Claimed] = []
    is_over = threading.Event()

    def stuck(_runtime: object, _writer: object, job: Claimed, _worker_id: object) -> None:
        claimed.append(job)
        is_over.wait()

    monkeypatch.setattr(handler, "run_job", stuck)
    look = IdleLook(make_worker(max_num_seqs=2).runtime, interval_s=0.01)
    yield look, claimed
    look.stop()
    is_over.set()


def test_idle_worker_claims_no_more_than_it_has_slots_while_redis_is_slow(
    idle_look: tuple[IdleLook, list[Claimed]], jobs: Jobs
) -> None:
    look, claimed = idle_look
    for _ in range(5):
        jobs.add()

    look.start()
    wait_until(lambda: len(claimed) >= 2)
    look.stop()

    assert jobs.query("SELECT count(*) AS n FROM jobs WHERE status = 'in_progress'") == [{"n": 2}]


def test_finished_job_is_given_up_when_redis_stays_away(
    make_worker: MakeWorker, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "LINGER_S", 0.2)
    worker = make_worker()
    worker.runtime.streams.connection_pool.connection_kwargs["port"] = 1
    worker.runtime.streams.connection_pool.disconnect()

    worker.run(jobs.add())

    wait_until(lambda: not worker.runtime.publisher._dirty, what="the end of the retries")


def test_log_is_not_begun_anew_by_a_worker_whose_lease_may_be_over(
    make_worker: MakeWorker, jobs: Jobs, services: Services
) -> None:
    worker = make_worker(step_ms=5.0)
    job_id = jobs.add(max_output_tokens=600)
    thread = worker.begin(job_id)
    wait_until(lambda: len(worker.log(job_id)) > 3)
    worker.heartbeat._stop.set()
    worker.heartbeat._thread.join()

    worker.runtime.publisher.trusted_until = time.monotonic()
    with redis.Redis.from_url(services.redis_url) as client:
        client.flushall()
    thread.join(timeout=20)
    held_back = worker.log(job_id)
    worker.runtime.publisher.trusted_until = math.inf

    assert held_back == []
    wait_until(lambda: worker.log(job_id), what="the log")
    assert worker.log(job_id)[0].seq == 1
