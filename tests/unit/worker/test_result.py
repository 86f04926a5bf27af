"""What a job's end writes: each choice's output, and the counts that are billed."""

from __future__ import annotations

import pytest

from store.attempts import Finish
from tasks.errors import EngineFailed
from tasks.events import make_gap
from tasks.ids import uuid7
from tasks.jobs import COMPLETED, ENGINE_ERROR, Ending, Payer, cancelled_by
from tests.unit.worker.test_job_stream import new_stream, output
from workers.inference.engine.protocol import FinishReason, TokenLogprobs
from workers.inference.job_stream import JobStream
from workers.inference.result import End, finish_record

STOP = FinishReason.STOP


def record(
    stream: JobStream,
    ending: Ending = COMPLETED,
    reason: FinishReason = STOP,
    *,
    cached_tokens: int = 0,
) -> Finish:
    return finish_record(stream, uuid7(), End(ending, reason, cached_tokens))


def test_output_names_each_choice_with_its_own_end() -> None:
    stream = new_stream(num_choices=2)
    stream.add_output(output("b", 1, index=1, reason=STOP))
    stream.add_output(output("a", 2, index=0, reason=FinishReason.LENGTH))

    finish = record(stream)

    assert finish.output == [
        {"index": 0, "text": "a", "finish_reason": "length"},
        {"index": 1, "text": "b", "finish_reason": "stop"},
    ]


def test_tokens_of_all_choices_are_counted_and_paid_together() -> None:
    stream = new_stream(num_choices=3)
    for index in range(3):
        stream.add_output(output("abcd", 1, 2, 3, 4, index=index, reason=STOP))

    finish = record(stream, cached_tokens=1)

    assert (finish.output_tokens, finish.attempt_tokens, finish.cached_tokens) == (12, 12, 1)
    assert finish.cost_micros == 15  # 0.03 of cached input and 12 * 1.2 of output, rounded up


def test_choice_that_ended_before_a_cancel_keeps_its_reason() -> None:
    stream = new_stream(num_choices=2)
    stream.add_output(output("a", 1, index=0, reason=STOP))
    stream.add_output(output("", index=1, reason=FinishReason.ABORT))

    finish = record(stream, cancelled_by("user"), FinishReason.ABORT)

    assert [choice["finish_reason"] for choice in finish.output] == ["stop", None]
    assert finish.attempt_outcome == "cancelled"


def test_job_of_which_no_choice_has_a_token_costs_nothing() -> None:
    stream = new_stream(num_choices=2)

    finish = record(stream, cancelled_by("user"), FinishReason.ABORT)

    assert (finish.ending.payer, finish.cost_micros) == (Payer.NOBODY, 0)


def test_what_is_our_fault_stays_so_without_a_token() -> None:
    finish = record(new_stream(), ENGINE_ERROR, FinishReason.ERROR)

    assert (finish.ending, finish.cost_micros) == (ENGINE_ERROR, 0)
    assert (finish.error_code, finish.error_message) == (None, None)


def test_an_error_is_named_in_the_platforms_words() -> None:
    end = End(ENGINE_ERROR, FinishReason.ERROR, 0, EngineFailed("It broke."))

    finish = finish_record(new_stream(), uuid7(), end)

    assert (finish.error_code, finish.error_message) == ("engine_error", "It broke.")


def test_failed_job_has_no_output() -> None:
    assert record(new_stream(num_choices=2), ENGINE_ERROR, FinishReason.ERROR).output == []


@pytest.mark.parametrize("is_lost", [False, True])
def test_logprobs_are_given_whole_or_not_at_all(is_lost: bool) -> None:
    history = [make_gap(2_000_000, ["", ""])] if is_lost else []
    stream = new_stream(*history, num_choices=2, sampling={"logprobs": 1})
    stream.choices[0].add([4] if is_lost else [], "x" if is_lost else "")
    scored = TokenLogprobs(5, -0.5, ((5, -0.5),))

    for index in range(2):
        stream.add_output(output("a", 5, index=index, reason=STOP, logprobs=(scored,)))

    whole = {"token_ids": [5], "values": [[-0.5, ((5, -0.5),)]]}
    found = [choice["logprobs"] for choice in record(stream).output]
    assert found == [None if is_lost else whole, whole]
