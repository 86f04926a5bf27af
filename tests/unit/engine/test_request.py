"""When a request ends, and what it says last."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.engine.requests import running_request
from workers.inference.engine.errors import EngineError
from workers.inference.engine.protocol import FinishReason


def test_end_of_sequence_token_stops_without_text() -> None:
    output = running_request().append(0)

    assert (output.token_ids, output.text) == ((0,), "")
    assert output.finish_reason is FinishReason.STOP


def test_ignored_end_of_sequence_token_goes_on() -> None:
    assert running_request(ignore_eos=True).append(0).finish_reason is None


def test_stop_string_before_min_tokens_is_ordinary_text() -> None:
    request = running_request(stop=(" w5",), min_tokens=2)

    outputs = [request.append(5), request.append(5)]

    assert [output.text for output in outputs] == [" w5", ""]
    assert outputs[1].finish_reason is FinishReason.STOP


def test_text_held_for_a_stop_string_comes_out_with_length() -> None:
    request = running_request(stop=("w5 w6",), max_tokens=1)

    output = request.append(5)

    assert (output.text, output.finish_reason) == (" w5", FinishReason.LENGTH)


def test_text_held_for_a_stop_string_comes_out_with_abort() -> None:
    request = running_request(stop=("w5 w6",))

    texts = [request.append(5).text, request.finish(FinishReason.ABORT).text]

    assert texts == [" ", "w5"]


def test_error_output_carries_the_error_and_no_text() -> None:
    error = EngineError("engine_error", "boom", retryable=True)
    request = running_request(stop=("w5 w6",))
    request.append(5)

    output = request.finish(FinishReason.ERROR, error)

    assert (output.text, output.error) == ("", error)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"generated_token_ids": [5, 0]}, FinishReason.STOP),
        ({"generated_token_ids": [5, 6], "stop": ("w6",)}, FinishReason.STOP),
        ({"generated_token_ids": [5, 6], "max_tokens": 2}, FinishReason.LENGTH),
        ({"generated_token_ids": [5] * 97, "max_tokens": 500}, FinishReason.LENGTH),
    ],
)
def test_continuation_that_was_over_ends_without_a_token(
    fields: dict[str, Any], reason: FinishReason
) -> None:
    output = running_request(**fields).output_of_replay()

    assert (output.token_ids, output.text, output.finish_reason) == ((), "", reason)


def test_unseeded_requests_draw_different_seeds() -> None:
    assert running_request().seed != running_request().seed
