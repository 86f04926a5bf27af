"""When a request ends, and what it says last."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.engine.requests import running_request
from workers.inference.engine.errors import EngineError
from workers.inference.engine.executor import SampledToken
from workers.inference.engine.protocol import FinishReason, TokenLogprobs, TokenOutput
from workers.inference.engine.request import Request


class CountingGrammar:
    """Takes any tokens but number 9, and stops after `length` of them."""

    def __init__(self, length: int) -> None:
        self.accepted: list[int] = []
        self._length = length

    @property
    def is_stopped(self) -> bool:
        return len(self.accepted) >= self._length

    def accept(self, token_id: int) -> None:
        if token_id == 9:
            raise EngineError("engine_error", "the token may not follow", retryable=True)
        self.accepted.append(token_id)

    def copy(self) -> CountingGrammar:
        raise NotImplementedError


def append(request: Request, token_id: int) -> TokenOutput:
    return request.append(SampledToken(token_id))


def test_end_of_sequence_token_stops_without_text() -> None:
    output = append(running_request(), 0)

    assert (output.token_ids, output.text) == ((0,), "")
    assert output.finish_reason is FinishReason.STOP


def test_ignored_end_of_sequence_token_goes_on() -> None:
    assert append(running_request(ignore_eos=True), 0).finish_reason is None


def test_stop_string_before_min_tokens_is_ordinary_text() -> None:
    request = running_request(stop=(" w5",), min_tokens=2)

    outputs = [append(request, 5), append(request, 5)]

    assert [output.text for output in outputs] == [" w5", ""]
    assert outputs[1].finish_reason is FinishReason.STOP


def test_continuation_ends_where_its_own_tokens_end_it() -> None:
    request = running_request(generated_token_ids=[[5, 0, 6]])

    assert request.finish_reason is FinishReason.STOP
    assert request.token_ids[request.num_prompt :] == [5, 0]


def test_end_token_before_min_tokens_ends_nothing() -> None:
    request = running_request(min_tokens=2)

    reasons = [append(request, token_id).finish_reason for token_id in (0, 0)]

    assert reasons == [None, FinishReason.STOP]


def test_text_held_for_a_stop_string_comes_out_with_length() -> None:
    request = running_request(stop=("w5 w6",), max_tokens=1)

    output = append(request, 5)

    assert (output.text, output.finish_reason) == (" w5", FinishReason.LENGTH)


def test_text_held_for_a_stop_string_comes_out_with_abort() -> None:
    request = running_request(stop=("w5 w6",))

    texts = [append(request, 5).text, request.finish(FinishReason.ABORT).text]

    assert texts == [" ", "w5"]


def test_error_output_carries_the_error_and_no_text() -> None:
    error = EngineError("engine_error", "boom", retryable=True)
    request = running_request(stop=("w5 w6",))
    append(request, 5)

    output = request.finish(FinishReason.ERROR, error)

    assert (output.text, output.error) == ("", error)


def test_full_context_ends_with_length() -> None:
    request = running_request(99, max_tokens=500)

    assert append(request, 5).finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"generated_token_ids": [[5, 0]]}, FinishReason.STOP),
        ({"generated_token_ids": [[5, 6]], "stop": ("w6",)}, FinishReason.STOP),
        ({"generated_token_ids": [[5, 6]], "max_tokens": 2}, FinishReason.LENGTH),
        ({"generated_token_ids": [[5] * 97], "max_tokens": 500}, FinishReason.LENGTH),
        ({"generated_token_ids": [[5, 6]], "grammar": CountingGrammar(2)}, FinishReason.STOP),
    ],
)
def test_continuation_that_was_over_ends_without_a_token(
    fields: dict[str, Any], reason: FinishReason
) -> None:
    output = running_request(**fields).output_of_replay()

    assert (output.token_ids, output.text, output.finish_reason) == ((), "", reason)


def test_each_choice_continues_its_own_tokens_and_names_itself() -> None:
    second = running_request(n=2, generated_token_ids=[[5], [6, 7]], index=1)

    output = append(second, 8)

    assert second.token_ids == [1, 1, 1, 6, 7, 8]
    assert output.index == 1


def test_unseeded_requests_draw_different_seeds() -> None:
    assert running_request().seed != running_request().seed


def test_stopped_grammar_ends_with_stop_and_all_text() -> None:
    request = running_request(grammar=CountingGrammar(1), stop=("w5 w6",), max_tokens=1)

    output = append(request, 5)

    assert (output.text, output.finish_reason) == (" w5", FinishReason.STOP)


def test_grammar_follows_the_tokens_of_a_continuation_but_not_the_end_token() -> None:
    grammar = CountingGrammar(9)
    request = running_request(grammar=grammar, generated_token_ids=[[5, 6]])

    append(request, 0)

    assert grammar.accepted == [5, 6]


def test_continuation_that_leaves_the_grammar_is_refused() -> None:
    with pytest.raises(EngineError):
        running_request(grammar=CountingGrammar(9), generated_token_ids=[[9]])


def test_logprobs_come_with_their_token() -> None:
    logprobs = TokenLogprobs(5, -0.5, ((5, -0.5), (6, -1.0)))

    assert running_request().append(SampledToken(5, logprobs)).logprobs == (logprobs,)


def test_output_tells_the_cached_tokens() -> None:
    request = running_request(max_tokens=1)
    request.cached_tokens = 2

    assert append(request, 5).cached_tokens == 2
