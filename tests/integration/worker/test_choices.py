"""Jobs with several choices: each one's text is exact, whatever becomes of the attempt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest
import redis

from store.attempts import ask_cancel
from tasks.events import EventType, decompress_event_log, logprobs_of, texts_of, token_ids_of
from tests.integration.worker.conftest import InProcessWorker, MakeWorker
from tests.support.jobs import Jobs
from tests.support.services import Services
from tests.support.waiting import wait_until
from workers.inference.engine.errors import EngineError
from workers.inference.engine.executor import SampledToken
from workers.inference.engine.request import Request
from workers.inference.engine.stub import (
    StubExecutor,
    expected_logprobs,
    expected_text,
    expected_tokens,
)

NUM_CHOICES = 3
NUM_TOKENS = 200
SHORT = 12  # tokens of choice 1, which a stop string ends
STOP = f" w{expected_tokens(8, SHORT)[-1]} "
SAMPLING = {"seed": 7, "temperature": 0.0, "logprobs": 2, "stop": [STOP]}
LENGTHS = (NUM_TOKENS, SHORT + 1, NUM_TOKENS)
# Choice 1 stops where the text behind its 12th token begins.
TEXTS = [expected_text(7, NUM_TOKENS), expected_text(8, SHORT - 1), expected_text(9, NUM_TOKENS)]
REASONS = ["length", "stop", "length"]


def add(jobs: Jobs, **changes: Any) -> UUID:
    fields = {"num_choices": NUM_CHOICES, "max_output_tokens": NUM_TOKENS, "sampling": SAMPLING}
    return jobs.add(**{**fields, **changes})


def logprobs(index: int) -> dict[str, Any]:
    """What the result says of a choice."""
    token_ids = expected_tokens(7 + index, LENGTHS[index])
    scored = (expected_logprobs(token_id, 2) for token_id in token_ids)
    values = [[of.logprob, [list(pair) for pair in of.top]] for of in scored]
    return {"token_ids": token_ids, "values": values}


def assert_whole(jobs: Jobs, job_id: UUID) -> dict[str, Any]:
    """Every choice is as foretold, and each of its tokens is counted once."""
    row = jobs.row(job_id)
    assert [choice["index"] for choice in row["output"]] == [0, 1, 2]
    assert [choice["text"] for choice in row["output"]] == TEXTS
    assert [choice["finish_reason"] for choice in row["output"]] == REASONS
    assert row["output_tokens"] == sum(LENGTHS)
    attempts = jobs.query("SELECT output_tokens FROM job_attempts WHERE job_id = %s", (job_id,))
    assert sum(attempt["output_tokens"] for attempt in attempts) == sum(LENGTHS)
    events = decompress_event_log(row["event_log"])
    assert texts_of(events, NUM_CHOICES) == TEXTS
    return row


def begin(worker: InProcessWorker, jobs: Jobs, **changes: Any) -> tuple[UUID, Any]:
    """A job whose choice 1 has ended while the others go on."""
    job_id = add(jobs, **changes)
    thread = worker.begin(job_id)
    wait_until(lambda: len(worker.log(job_id)) > 3 * SHORT + 20)
    return job_id, thread


def test_each_choice_has_its_own_text_end_and_logprobs(worker: InProcessWorker, jobs: Jobs) -> None:
    job_id = add(jobs)

    worker.run(job_id)

    row = assert_whole(jobs, job_id)
    assert (row["status"], row["reason"]) == ("incomplete", "max_output_tokens")
    assert [choice["logprobs"] for choice in row["output"]] == [logprobs(i) for i in range(3)]
    events = decompress_event_log(row["event_log"])
    assert [len(ids) for ids in token_ids_of(events, NUM_CHOICES)] == list(LENGTHS)
    tokens = [event.fields() for event in events if event.type == EventType.TOKEN]
    assert all(len(fields["token_ids"]) == len(fields["logprobs"]) == 1 for fields in tokens)
    (outcome,) = jobs.query("SELECT * FROM job_outcomes")
    assert (outcome["payer"], outcome["output_tokens"]) == ("tenant", sum(LENGTHS))


def test_job_of_which_all_choices_stop_is_completed(make_worker: MakeWorker, jobs: Jobs) -> None:
    worker = make_worker(num_tokens=5)
    job_id = add(jobs, sampling={"seed": 7})

    worker.run(job_id)

    row = jobs.row(job_id)
    assert (row["status"], row["reason"], row["output_tokens"]) == ("completed", None, 18)
    assert row["output"] == [
        {"index": i, "text": expected_text(7 + i, 5), "finish_reason": "stop"} for i in range(3)
    ]


def test_drained_choices_go_on_with_their_logprobs_and_the_ended_one_is_not_repeated(
    make_worker: MakeWorker, jobs: Jobs
) -> None:
    first, second = make_worker(step_ms=5.0), make_worker()
    job_id, thread = begin(first, jobs)

    first.drain()
    thread.join(timeout=10)
    second.run(job_id)

    row = assert_whole(jobs, job_id)
    assert row["attempt"] == 2
    assert [choice["logprobs"] for choice in row["output"]] == [logprobs(i) for i in range(3)]
    events = decompress_event_log(row["event_log"])
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert logprobs_of(events, 3) == [logprobs(i)["values"] for i in range(3)]


def test_choices_go_on_from_the_checkpoint_when_the_log_is_lost(
    make_worker: MakeWorker, jobs: Jobs, services: Services
) -> None:
    first, second = make_worker(step_ms=5.0), make_worker()
    job_id, thread = begin(first, jobs)
    first.drain()
    thread.join(timeout=10)
    with redis.Redis.from_url(services.redis_url) as client:
        client.flushall()

    second.run(job_id)

    row = assert_whole(jobs, job_id)
    gap = decompress_event_log(row["event_log"])[0].fields()
    assert gap["text"] == gap["texts"][0]
    assert gap["texts"][1] == TEXTS[1]
    assert all(text.startswith(part) for text, part in zip(TEXTS, gap["texts"], strict=True))
    assert [choice["logprobs"] for choice in row["output"]] == [None] * 3


def test_choices_of_a_lost_attempt_go_on_after_log_and_checkpoint(
    make_worker: MakeWorker, jobs: Jobs, services: Services
) -> None:
    """A stale attempt is found out, and the log begins behind what the checkpoint has."""
    zombie, successor = make_worker(step_ms=5.0), make_worker()
    job_id, thread = begin(zombie, jobs)
    wait_until(lambda: jobs.query("SELECT checkpoint_seq AS s FROM job_attempts")[0]["s"] > 0)
    with redis.Redis.from_url(services.redis_url) as client:
        client.xtrim(f"stream:{{{job_id.hex}}}:log", maxlen=10, approximate=False)

    jobs.query("UPDATE jobs SET status = 'queued', worker_id = NULL RETURNING id")
    successor.run(job_id)
    thread.join(timeout=10)

    row = jobs.row(job_id)
    assert row["attempt"] == 2
    assert [choice["text"] for choice in row["output"]] == TEXTS
    assert row["output_tokens"] == sum(LENGTHS)


def test_cancel_keeps_and_counts_what_each_choice_produced(
    make_worker: MakeWorker, jobs: Jobs
) -> None:
    worker = make_worker(step_ms=5.0)
    job_id, thread = begin(worker, jobs, max_output_tokens=1_000)

    with jobs.connect() as connection:
        ask_cancel(connection, job_id, by="user")
    thread.join(timeout=10)

    row = jobs.row(job_id)
    assert row["status"] == "cancelled"
    assert [choice["finish_reason"] for choice in row["output"]] == [None, "stop", None]
    lengths = [len(choice["logprobs"]["token_ids"]) for choice in row["output"]]
    assert row["output_tokens"] == sum(lengths)
    for index in (0, 2):
        assert row["output"][index]["text"] == expected_text(7 + index, lengths[index])


def test_failure_of_one_choice_ends_the_attempt_and_frees_the_engine(
    make_worker: MakeWorker, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = StubExecutor.sample

    def faulty(
        self: StubExecutor, scores: object, requests: Sequence[Request]
    ) -> list[SampledToken | EngineError]:
        error = EngineError("engine_error", "no token may follow", retryable=True)
        sampled = sample(self, scores, requests)
        is_faulty = [request.index == 2 and request.num_generated == 5 for request in requests]
        return [error if bad else token for bad, token in zip(is_faulty, sampled, strict=True)]

    monkeypatch.setattr(StubExecutor, "sample", faulty)
    worker = make_worker(step_ms=1.0)
    job_id = add(jobs)

    worker.run(job_id)
    wait_until(lambda: worker.engine.progress().is_idle, what="an idle engine")
    given_back = jobs.row(job_id)
    monkeypatch.undo()
    jobs.query("UPDATE jobs SET run_after = now() RETURNING id")
    worker.run(job_id)

    assert (given_back["status"], given_back["fail_count"]) == ("queued", 1)
    assert worker.engine.stats().generated_tokens < 2 * sum(LENGTHS)
    assert_whole(jobs, job_id)


def test_text_held_back_at_a_drain_is_not_said_twice(make_worker: MakeWorker, jobs: Jobs) -> None:
    """The stop string may yet come, so the engine says nothing for 60 tokens."""
    first, second = make_worker(step_ms=5.0), make_worker()
    stop = expected_text(7, 60) + "!"
    job_id = jobs.add(max_output_tokens=100, sampling={"seed": 7, "stop": [stop]})
    thread = first.begin(job_id)
    wait_until(lambda: len(first.log(job_id)) > 10)

    first.drain()
    thread.join(timeout=10)
    given_back = jobs.query("SELECT checkpoint_text AS text FROM job_attempts")
    second.run(job_id)

    row = jobs.row(job_id)
    assert given_back == [{"text": ""}]
    assert row["output"][0]["text"] == expected_text(7, 100)
    assert texts_of(decompress_event_log(row["event_log"])) == [expected_text(7, 100)]
