"""How the sampler and a request follow a grammar, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.structured import RandomWriter, json_grammar, lark_grammar
from tests.support.tiny_models import EOS_TOKEN_ID, byte_level_tokenizer
from tests.unit.engine.requests import running_request
from workers.inference.engine.errors import EngineError
from workers.inference.engine.executor import SampledToken
from workers.inference.engine.grammar import TokenGrammar
from workers.inference.engine.protocol import FinishReason
from workers.inference.engine.request import Request
from workers.inference.engine.sampler import sample
from workers.inference.engine.sampling.masks import mask

TOKENIZER = byte_level_tokenizer()
VOCAB = TOKENIZER.get_vocab_size()


@pytest.fixture(scope="module")
def writer() -> RandomWriter:
    return RandomWriter(TOKENIZER, vocab_size=VOCAB)


def choice(word: str) -> str:
    return lark_grammar(f'start: "{word}"')


def token_id(piece: str) -> int:
    found = TOKENIZER.token_to_id(piece)
    assert found is not None
    return found


def test_mask_touches_the_rows_with_a_grammar_only(writer: RandomWriter) -> None:
    logits = torch.randn(4, VOCAB)
    before = logits.clone()
    grammars = {1: lark_grammar("start: /[a-c]/"), 3: lark_grammar("start: /[xy]/")}
    requests = [
        writer.request(grammars[row]) if row in grammars else running_request() for row in range(4)
    ]

    assert mask(logits, requests) == {}

    assert torch.equal(logits[[0, 2]], before[[0, 2]])
    for row, letters in ((1, "abc"), (3, "xy")):
        possible = (logits[row] > -torch.inf).nonzero()[:, 0].tolist()
        assert possible == sorted(token_id(letter) for letter in letters)
        assert torch.equal(logits[row, possible], before[row, possible])


def test_grammar_that_fails_in_a_step_fails_its_row_alone(writer: RandomWriter) -> None:
    requests = [writer.request(choice("a")) for _ in range(3)]
    failing = requests[1].grammar
    assert isinstance(failing, TokenGrammar)
    with pytest.raises(EngineError):
        failing.accept(token_id("b"))

    first, failed, last = sample(torch.randn(3, VOCAB), requests)

    assert isinstance(failed, EngineError)
    assert failed.code == "invalid_grammar"
    assert first == last == SampledToken(token_id("a"))


def test_request_ends_when_nothing_may_follow(writer: RandomWriter) -> None:
    requests = [writer.request(choice("the fox"), ignore_eos=ignore) for ignore in (False, True)]

    assert writer.write(requests) == ["the fox"] * 2
    assert [request.finish_reason for request in requests] == [FinishReason.STOP] * 2


def test_end_of_sequence_ends_a_request_that_ignores_it(writer: RandomWriter) -> None:
    request = writer.request(lark_grammar("start: /a*/"), ignore_eos=True, max_tokens=5000)

    (text,) = writer.write([request])

    assert set(text) <= {"a"}
    assert request.finish_reason is FinishReason.STOP
    assert request.token_ids[-1] == EOS_TOKEN_ID


def test_end_by_length_is_told_apart_from_a_whole_text(writer: RandomWriter) -> None:
    request = writer.request(lark_grammar("start: /a{50,60}/"), max_tokens=3)

    writer.write([request])

    assert request.finish_reason is FinishReason.LENGTH


def test_grammar_wins_over_min_tokens_where_only_an_end_is_left(writer: RandomWriter) -> None:
    can_go_on = [
        writer.request(lark_grammar("start: /a*/"), min_tokens=20, seed=seed) for seed in range(8)
    ]
    must_end = writer.request(lark_grammar('start: "a"?'), min_tokens=20)
    must_end.append(SampledToken(token_id("a")))

    assert all(len(text) >= 20 for text in writer.write(can_go_on))
    assert must_end.finish_reason is FinishReason.STOP


def test_suppressed_ends_come_back_when_the_grammar_has_nothing_else(
    writer: RandomWriter,
) -> None:
    request = writer.request(choice(""), min_tokens=5)

    (result,) = sample(torch.randn(1, VOCAB), [request])

    assert result == SampledToken(EOS_TOKEN_ID)


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "integer"}}},
    "required": ["a", "b"],
}


def test_continuation_goes_on_at_every_position_as_if_never_cut(writer: RandomWriter) -> None:
    def step(request: Request, position: int) -> None:
        generator = torch.Generator().manual_seed(position)
        (result,) = sample(3 * torch.randn(1, VOCAB, generator=generator), [request])
        assert isinstance(result, SampledToken)
        request.append(result)

    sampling: dict[str, Any] = {"seed": 3, "frequency_penalty": 0.1, "max_tokens": 64}
    whole = writer.request(json_grammar(SCHEMA), **sampling)
    while not whole.is_finished:
        step(whole, whole.num_generated)
    generated = whole.token_ids[1:]

    for cut in range(len(generated)):
        rest = writer.request(json_grammar(SCHEMA), generated_token_ids=generated[:cut], **sampling)
        while not rest.is_finished:
            step(rest, rest.num_generated)
        assert rest.token_ids == whole.token_ids, cut


def test_continuation_with_tokens_of_another_grammar_is_refused(writer: RandomWriter) -> None:
    with pytest.raises(EngineError) as caught:
        writer.request(choice("a"), generated_token_ids=[token_id("b")])

    assert caught.value.code == "invalid_grammar"
