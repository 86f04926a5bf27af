"""Jobs whose prompts are scored, and jobs of several prompts, whatever becomes of an attempt."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
import redis

from billing.pricing import cost_micros
from store.attempts import ask_cancel
from tasks.events import EventType, decompress_event_log, prompt_logprobs_of
from tests.integration.worker.conftest import InProcessWorker, MakeWorker
from tests.support.jobs import PRICES, Jobs
from tests.support.services import Services
from tests.support.waiting import wait_until
from workers.inference.engine.stub import expected_logprobs, expected_text
from workers.inference.job_stream import MAX_AT_ONCE

LENGTHS = [40, 1, 700]  # the last takes more than one step
PROMPTS = [[1 + (at + number) % 500 for at in range(n)] for number, n in enumerate(LENGTHS)]
NUM_EACH = 2
SAMPLING = {"seed": 7, "temperature": 0.0, "logprobs": 1, "prompt_logprobs": 1}
SLOW = {"prompt_token_ms": 0.5}
TEXTS = [expected_text(7 + index, 5) for index in range(NUM_EACH)] * len(PROMPTS)


def add(jobs: Jobs, **changes: Any) -> UUID:
    fields: dict[str, Any] = {
        "prompt": [token_id for prompt in PROMPTS for token_id in prompt],
        "num_choices": NUM_EACH * len(PROMPTS),
        "max_output_tokens": 5,
        "sampling": SAMPLING | {"prompt_lengths": LENGTHS},
    }
    return jobs.add(**{**fields, **changes})


def scores(prompt: list[int]) -> list[Any]:
    """What events and results say of a prompt."""
    told = [expected_logprobs(token_id, 1) for token_id in prompt[1:]]
    return [[None, []], *([of.logprob, [list(pair) for pair in of.top]] for of in told)]


def assert_whole(jobs: Jobs, job_id: UUID) -> dict[str, Any]:
    row = jobs.row(job_id)
    assert [choice["index"] for choice in row["output"]] == list(range(6))
    assert [choice["text"] for choice in row["output"]] == TEXTS
    found = {c["index"]: c["prompt_logprobs"] for c in row["output"] if "prompt_logprobs" in c}
    assert found == {
        number * NUM_EACH: {"token_ids": prompt, "values": scores(prompt)}
        for number, prompt in enumerate(PROMPTS)
    }
    assert row["output_tokens"] == 30
    return row


def begin(worker: InProcessWorker, jobs: Jobs) -> tuple[UUID, Any]:
    """Until a part of the longest prompt is told."""
    job_id = add(jobs)
    thread = worker.begin(job_id)
    wait_until(lambda: len(prompt_logprobs_of(worker.log(job_id)).get(4, ())) > 60)
    return job_id, thread


def test_each_prompt_has_its_choices_and_its_scores(worker: InProcessWorker, jobs: Jobs) -> None:
    job_id = add(jobs)

    worker.run(job_id)

    row = assert_whole(jobs, job_id)
    assert all(len(choice["logprobs"]["token_ids"]) == 5 for choice in row["output"])
    events = decompress_event_log(row["event_log"])
    told = [event.fields() for event in events if event.type == EventType.PROMPT]
    assert max(len(fields["token_ids"]) for fields in told) <= 32  # an event is small
    assert {fields["index"]: fields["total"] for fields in told} == {0: 40, 2: 1, 4: 700}
    assert prompt_logprobs_of(events)[4] == scores(PROMPTS[2])


def test_a_drained_attempt_goes_on_with_the_scores_told(
    make_worker: MakeWorker, jobs: Jobs
) -> None:
    first, second = make_worker(**SLOW), make_worker()
    job_id, thread = begin(first, jobs)

    first.drain()
    thread.join(timeout=10)
    num_told = len(prompt_logprobs_of(first.log(job_id))[4])
    second.run(job_id)

    row = assert_whole(jobs, job_id)
    assert (row["attempt"], num_told < LENGTHS[2]) == (2, True)
    events = decompress_event_log(row["event_log"])
    assert prompt_logprobs_of(events) == {0: scores(PROMPTS[0]), 2: scores(PROMPTS[1]),
                                          4: scores(PROMPTS[2])}  # fmt: skip
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


def test_prompts_are_scored_again_when_the_log_is_lost(
    make_worker: MakeWorker, jobs: Jobs, services: Services
) -> None:
    first, second = make_worker(**SLOW), make_worker()
    job_id, thread = begin(first, jobs)
    first.drain()
    thread.join(timeout=10)
    with redis.Redis.from_url(services.redis_url) as client:
        client.flushall()

    second.run(job_id)

    assert_whole(jobs, job_id)


@pytest.mark.parametrize("is_scored", [False, True])
def test_a_job_of_no_tokens_is_over_with_its_prompt_and_paid_for(
    worker: InProcessWorker, jobs: Jobs, is_scored: bool
) -> None:
    sampling = {"max_tokens": 0} | ({"prompt_logprobs": 1} if is_scored else {})
    job_id = jobs.add(prompt=PROMPTS[0], max_output_tokens=0, sampling=sampling)

    worker.run(job_id)

    row = jobs.row(job_id)
    assert (row["status"], row["reason"]) == ("incomplete", "max_output_tokens")
    [choice] = row["output"]
    assert (choice["text"], choice["finish_reason"]) == ("", "length")
    assert (choice.get("prompt_logprobs") is not None) == is_scored
    cost = cost_micros(input_tokens=40, cached_tokens=0, output_tokens=0, prices=PRICES)
    assert (row["output_tokens"], row["cost_micros"]) == (0, cost)
    [outcome] = jobs.query("SELECT payer, input_tokens FROM job_outcomes")
    assert outcome == {"payer": "tenant", "input_tokens": 40}


def test_what_was_told_of_a_prompt_before_a_cancel_is_paid_for(
    make_worker: MakeWorker, jobs: Jobs
) -> None:
    worker = make_worker(prompt_token_ms=4.0)
    job_id, thread = begin(worker, jobs)

    with jobs.connect() as connection:
        ask_cancel(connection, job_id, by="user")
    thread.join(timeout=10)

    row = jobs.row(job_id)
    assert row["status"] == "cancelled"
    assert row["cost_micros"] > 0
    assert row["output"][4]["prompt_logprobs"] is None  # a part is none


def test_many_prompts_of_one_job_leave_the_engine_to_others(
    make_worker: MakeWorker, jobs: Jobs
) -> None:
    worker = make_worker(step_ms=2.0)
    many = jobs.add(
        prompt=[1 + at for at in range(40)],
        num_choices=40,
        max_output_tokens=5,
        sampling={"seed": 7, "prompt_lengths": [1] * 40},
    )
    most = 0

    thread = worker.begin(many)
    while thread.is_alive():
        stats = worker.engine.stats()
        most = max(most, stats.num_running + stats.num_waiting)
    thread.join()

    assert 1 < most <= MAX_AT_ONCE
    assert [c["text"] for c in jobs.row(many)["output"]] == [expected_text(7, 5)] * 40
