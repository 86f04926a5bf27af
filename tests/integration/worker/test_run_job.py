"""An attempt from claim to commit, on real Postgres and Redis."""

from __future__ import annotations

import threading

import redis

from store import leases
from store.attempts import ask_cancel
from tasks.events import EventType, decompress_event_log, texts_of, token_ids_of
from tasks.stream import SEQUENCE_JUMP
from tasks.token_ids import unpack_token_ids
from tests.integration.worker.conftest import InProcessWorker, MakeWorker, num_attempts
from tests.support.jobs import Jobs
from tests.support.services import Services
from tests.support.waiting import wait_until
from workers.inference.engine.stub import expected_text


def test_job_is_completed_with_result_outcome_and_event_log(
    worker: InProcessWorker, jobs: Jobs
) -> None:
    job_id = jobs.add()

    worker.run(job_id)

    row = jobs.row(job_id)
    assert row["status"] == "incomplete"
    assert row["reason"] == "max_output_tokens"
    assert row["output"] == [{"index": 0, "text": expected_text(7, 20), "finish_reason": "length"}]
    assert row["output_tokens"] == 20
    (outcome,) = jobs.query("SELECT * FROM job_outcomes")
    assert (outcome["payer"], outcome["output_tokens"]) == ("tenant", 20)
    assert row["cost_micros"] == 25  # (3 * 0.3 + 20 * 1.2) micros, rounded up


def test_stream_in_redis_equals_the_stored_event_log(worker: InProcessWorker, jobs: Jobs) -> None:
    job_id = jobs.add()

    worker.run(job_id)

    wait_until(lambda: worker.log(job_id)[-1].type == EventType.DONE)
    events = worker.log(job_id)
    row = jobs.row(job_id)
    assert events == decompress_event_log(row["event_log"])
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert events[-1].seq == row["last_seq"]
    assert texts_of(events) == [expected_text(7, 20)]


def test_surplus_ticket_claims_nothing(worker: InProcessWorker, jobs: Jobs) -> None:
    job_id = jobs.add()

    first, second = worker.claim(job_id), worker.claim(job_id)

    assert first is not None
    assert second is None


def test_ticket_claims_the_tenants_most_urgent_job(worker: InProcessWorker, jobs: Jobs) -> None:
    named = jobs.add(deadline_s=600.0)
    urgent = jobs.add(deadline_s=60.0)

    claimed = worker.claim(named)

    assert claimed is not None
    assert claimed.job_id == urgent


def test_worker_without_a_live_lease_claims_nothing(worker: InProcessWorker, jobs: Jobs) -> None:
    job_id = jobs.add()
    with jobs.connect() as connection:
        leases.set_draining(connection, worker.runtime.worker_id)

    assert worker.claim(job_id) is None


def test_cancel_of_a_running_job_keeps_and_counts_what_was_produced(
    make_worker: MakeWorker, jobs: Jobs
) -> None:
    worker = make_worker(step_ms=5.0)
    job_id = jobs.add(max_output_tokens=2_000)
    thread = worker.begin(job_id)
    wait_until(lambda: len(worker.log(job_id)) > 3)

    with jobs.connect() as connection:
        ask_cancel(connection, job_id, by="user")
    thread.join(timeout=10)

    row = jobs.row(job_id)
    assert (row["status"], row["reason"]) == ("cancelled", "cancelled_by_user")
    assert 0 < row["output_tokens"] < 2_000
    assert row["output"][0]["text"] == expected_text(7, row["output_tokens"])
    assert jobs.query("SELECT payer FROM job_outcomes") == [{"payer": "tenant"}]


def test_drained_job_goes_on_in_another_worker_without_a_seam(
    make_worker: MakeWorker, jobs: Jobs
) -> None:
    first, second = make_worker(step_ms=5.0), make_worker()
    job_id = jobs.add(max_output_tokens=300)
    thread = first.begin(job_id)
    wait_until(lambda: len(first.log(job_id)) > 5)

    first.drain()
    thread.join(timeout=10)
    given_back = jobs.row(job_id)
    second.run(job_id)

    assert (given_back["status"], given_back["fail_count"]) == ("queued", 0)
    row = jobs.row(job_id)
    assert row["attempt"] == 2
    assert row["output"][0]["text"] == expected_text(7, 300)
    events = decompress_event_log(row["event_log"])
    assert texts_of(events) == [expected_text(7, 300)]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    attempts = jobs.query("SELECT outcome, output_tokens FROM job_attempts ORDER BY attempt")
    assert [attempt["outcome"] for attempt in attempts] == ["drained", "ok"]
    assert sum(attempt["output_tokens"] for attempt in attempts) == 300


def test_stale_attempt_can_neither_publish_nor_finish(make_worker: MakeWorker, jobs: Jobs) -> None:
    zombie, successor = make_worker(step_ms=5.0), make_worker()
    job_id = jobs.add(max_output_tokens=200)
    thread = zombie.begin(job_id)
    wait_until(lambda: len(zombie.log(job_id)) > 5)

    jobs.query("UPDATE jobs SET status = 'queued', worker_id = NULL RETURNING id")
    successor.run(job_id)
    thread.join(timeout=10)

    row = jobs.row(job_id)
    assert row["attempt"] == 2
    assert row["output"][0]["text"] == expected_text(7, 200)
    events = decompress_event_log(row["event_log"])
    assert texts_of(events) == [expected_text(7, 200)]
    assert jobs.query("SELECT count(*) AS n FROM job_outcomes") == [{"n": 1}]


def test_finish_that_is_refused_leaves_the_stream_open_for_the_next_attempt(
    worker: InProcessWorker, jobs: Jobs
) -> None:
    job_id = jobs.add()
    claimed = worker.claim(job_id)
    assert claimed is not None
    jobs.query("UPDATE jobs SET status = 'queued', worker_id = NULL RETURNING id")

    worker.run_claimed(claimed)
    wait_until(lambda: texts_of(worker.log(job_id)) == [expected_text(7, 20)])
    worker.run(jobs.add(deadline_s=60.0))  # whatever the first has for the stream is sent by now
    types = [event.type for event in worker.log(job_id)]
    worker.run(job_id)

    assert EventType.DONE not in types
    row = jobs.row(job_id)
    assert (row["status"], row["attempt"]) == ("incomplete", 2)
    assert row["output"][0]["text"] == expected_text(7, 20)


def test_cancel_says_the_text_that_was_held_back(make_worker: MakeWorker, jobs: Jobs) -> None:
    """The stop string may yet come, so the engine says nothing for 500 tokens."""
    worker = make_worker(step_ms=5.0)
    stop = expected_text(7, 500) + "!"
    job_id = jobs.add(max_output_tokens=2_000, sampling={"seed": 7, "stop": [stop]})
    thread = worker.begin(job_id)
    wait_until(lambda: len(worker.log(job_id)) > 10)

    with jobs.connect() as connection:
        ask_cancel(connection, job_id, by="user")
    thread.join(timeout=10)

    row = jobs.row(job_id)
    assert row["status"] == "cancelled"
    assert row["output_tokens"] >= 10
    assert row["output"][0]["text"] == expected_text(7, row["output_tokens"])
    assert texts_of(decompress_event_log(row["event_log"])) == [row["output"][0]["text"]]


def test_a_job_that_is_given_back_says_nothing_more(make_worker: MakeWorker, jobs: Jobs) -> None:
    worker = make_worker(step_ms=5.0)
    stop = expected_text(7, 500) + "!"
    job_id = jobs.add(max_output_tokens=2_000, sampling={"seed": 7, "stop": [stop]})
    thread = worker.begin(job_id)
    wait_until(lambda: len(worker.log(job_id)) > 10)

    before = num_attempts()
    worker.drain()
    thread.join(timeout=10)

    assert num_attempts() - before == {"drained": 1}, "and tries to write no end"
    assert jobs.row(job_id)["status"] == "queued"
    assert "".join(texts_of(worker.log(job_id))) == "", "the next attempt may stop before it"


def test_a_job_that_is_over_is_held_no_more(worker: InProcessWorker, jobs: Jobs) -> None:
    worker.run(jobs.add())

    assert worker.runtime.running() == []
    assert worker.runtime.of_thread(threading.get_ident()) is None


def test_log_that_lost_its_beginning_is_not_taken_for_whole(
    make_worker: MakeWorker, jobs: Jobs, services: Services
) -> None:
    first, second = make_worker(step_ms=5.0), make_worker()
    job_id = jobs.add(max_output_tokens=300)
    thread = first.begin(job_id)
    wait_until(lambda: len(first.log(job_id)) > 5)
    first.drain()
    thread.join(timeout=10)
    (checkpoint,) = jobs.query("SELECT * FROM job_attempts")
    with redis.Redis.from_url(services.redis_url) as client:
        client.xtrim(f"stream:{{{job_id.hex}}}:log", maxlen=3, approximate=False)

    second.run(job_id)

    events = decompress_event_log(jobs.row(job_id)["event_log"])
    assert events[0].seq == 2 * SEQUENCE_JUMP
    assert events[0].fields()["text"] == checkpoint["checkpoint_text"]
    assert texts_of(events) == [expected_text(7, 300)]


def test_redis_emptied_while_running_loses_no_event(
    make_worker: MakeWorker, jobs: Jobs, services: Services
) -> None:
    worker = make_worker(step_ms=5.0)
    job_id = jobs.add(max_output_tokens=200)
    thread = worker.begin(job_id)
    wait_until(lambda: len(worker.log(job_id)) > 10)

    with redis.Redis.from_url(services.redis_url) as client:
        client.flushall()
    thread.join(timeout=10)

    wait_until(lambda: worker.log(job_id)[-1].type == EventType.DONE)
    events = worker.log(job_id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert texts_of(events) == [expected_text(7, 200)]


def test_attempt_after_a_lost_log_goes_on_from_the_checkpoint_behind_a_gap(
    make_worker: MakeWorker, jobs: Jobs, services: Services
) -> None:
    first, second = make_worker(step_ms=5.0), make_worker()
    job_id = jobs.add(max_output_tokens=300)
    thread = first.begin(job_id)
    wait_until(lambda: len(first.log(job_id)) > 5)
    first.drain()
    thread.join(timeout=10)
    with redis.Redis.from_url(services.redis_url) as client:
        client.flushall()
    (checkpoint,) = jobs.query("SELECT * FROM job_attempts")

    second.run(job_id)

    wait_until(lambda: second.log(job_id)[-1].type == EventType.DONE)
    events = second.log(job_id)
    gap = events[0].fields()
    assert (gap["from"], gap["to"]) == (1, events[0].seq)
    assert events[0].seq == 2 * SEQUENCE_JUMP
    assert gap["text"] == checkpoint["checkpoint_text"]
    assert texts_of(events) == [expected_text(7, 300)]
    tokens = unpack_token_ids(checkpoint["checkpoint_token_ids"]) + token_ids_of(events)[0]
    assert len(tokens) == 300
    assert jobs.row(job_id)["output"][0]["text"] == expected_text(7, 300)


def test_finished_job_does_not_wait_for_a_redis_that_is_away(
    make_worker: MakeWorker, jobs: Jobs
) -> None:
    worker = make_worker()
    worker.runtime.streams.connection_pool.connection_kwargs["port"] = 1
    worker.runtime.streams.connection_pool.disconnect()
    job_id = jobs.add()

    worker.run(job_id)

    assert jobs.row(job_id)["output"][0]["text"] == expected_text(7, 20)


def test_checkpoints_reach_postgres_while_the_job_runs(make_worker: MakeWorker, jobs: Jobs) -> None:
    worker = make_worker(step_ms=5.0)
    job_id = jobs.add(max_output_tokens=3_000)
    worker.begin(job_id)

    wait_until(lambda: jobs.query("SELECT checkpoint_seq AS s FROM job_attempts")[0]["s"] > 0)

    (attempt,) = jobs.query("SELECT * FROM job_attempts")
    num_tokens = len(unpack_token_ids(attempt["checkpoint_token_ids"]))
    assert attempt["checkpoint_text"] == expected_text(7, num_tokens)
    assert attempt["output_tokens"] == num_tokens


def test_hung_engine_loses_its_lease_and_gets_it_back_with_the_next_step(
    make_worker: MakeWorker, jobs: Jobs
) -> None:
    worker = make_worker(step_ms=1.0)
    job_id = jobs.add(max_output_tokens=6_000)
    worker.begin(job_id)
    wait_until(lambda: len(worker.log(job_id)) > 3)
    live = "SELECT 1 FROM worker_leases WHERE expires_at > now()"

    worker.engine.hang()
    wait_until(lambda: not jobs.query(live), timeout_s=15, what="the lease's end")
    worker.engine.release()

    wait_until(lambda: jobs.query(live), what="a renewed lease")


def test_late_beat_keeps_the_jobs_nobody_has_taken(make_worker: MakeWorker, jobs: Jobs) -> None:
    worker = make_worker(step_ms=2.0)
    worker_id = worker.runtime.worker_id
    job_id = jobs.add(max_output_tokens=1_500)
    thread = worker.begin(job_id)
    wait_until(lambda: len(worker.log(job_id)) > 3)

    jobs.query("UPDATE worker_leases SET expires_at = now() - interval '1 s' RETURNING 1")
    thread.join(timeout=20)

    row = jobs.row(job_id)
    assert (row["attempt"], row["fail_count"], row["status"]) == (1, 0, "incomplete")
    assert worker.runtime.worker_id == worker_id


def test_job_taken_while_the_worker_was_late_is_dropped_at_the_next_beat(
    make_worker: MakeWorker, jobs: Jobs
) -> None:
    worker = make_worker(step_ms=2.0)
    job_id = jobs.add(max_output_tokens=4_000)
    thread = worker.begin(job_id)
    wait_until(lambda: len(worker.log(job_id)) > 3)

    jobs.query("UPDATE jobs SET status = 'queued', worker_id = NULL RETURNING 1")
    thread.join(timeout=5)

    assert not thread.is_alive()
    assert jobs.row(job_id)["status"] == "queued"
    assert jobs.query("SELECT count(*) AS n FROM job_outcomes") == [{"n": 0}]


def test_grammar_is_given_to_the_engine_whose_refusal_ends_the_job(
    worker: InProcessWorker, jobs: Jobs
) -> None:
    job_id = jobs.add(grammar='{"grammars": []}')

    worker.run(job_id)

    row = jobs.row(job_id)
    assert (row["status"], row["attempt"]) == ("failed", 1)
    assert row["error_message"] == "this engine does not support grammars"
    assert row["error_retryable"] is False
    assert jobs.query("SELECT payer FROM job_outcomes") == [{"payer": "platform"}]
