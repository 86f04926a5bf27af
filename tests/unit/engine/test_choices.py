"""The choices of one request: what they share and what is each one's own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.structured import lark_grammar
from tests.support.tiny_models import EOS_TOKEN_ID, byte_level_tokenizer
from tests.unit.engine.requests import engine_request
from tests.unit.engine.test_served import FaultyExecutor
from workers.inference.engine.choices import make_choices
from workers.inference.engine.errors import EngineError
from workers.inference.engine.grammar import GrammarCompiler, TokenGrammar, allowed_tokens
from workers.inference.engine.protocol import ModelInfo

TOKENIZER = byte_level_tokenizer()
VOCAB = TOKENIZER.get_vocab_size()
GRAMMAR = lark_grammar(f"start: {json.dumps('ab')} | {json.dumps('cd')}")


class CountingExecutor(FaultyExecutor):
    """Compiles real grammars, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.info = ModelInfo(
            name="m", context_length=100, vocab_size=VOCAB, dtype="fp32", num_bytes=0
        )
        self.eos_token_ids = frozenset({EOS_TOKEN_ID})
        self.num_compiled = 0
        self._compiler = GrammarCompiler(TOKENIZER, VOCAB, self.eos_token_ids)

    def grammar(self, text: str) -> TokenGrammar:
        self.num_compiled += 1
        return self._compiler.compile(text)


@pytest.fixture
def executor() -> CountingExecutor:
    return CountingExecutor()


def token_ids(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text).ids
    return ids


def masks(grammars: list[Any]) -> list[list[int]]:
    rows: list[list[int]] = allowed_tokens(grammars, VOCAB).tolist()
    return rows


def test_grammar_of_several_choices_is_compiled_once(executor: CountingExecutor) -> None:
    choices = make_choices(engine_request(n=8, grammar=GRAMMAR), executor)

    assert executor.num_compiled == 1
    assert len({id(choice.grammar) for choice in choices}) == 8


def test_each_choice_stands_at_its_own_place_in_the_grammar(executor: CountingExecutor) -> None:
    generated = [token_ids("a"), [], token_ids("c"), token_ids("ab")]

    choices = make_choices(
        engine_request(n=4, grammar=GRAMMAR, generated_token_ids=generated), executor
    )

    alone = [executor.grammar(GRAMMAR) for _ in range(3)]
    for grammar, ids in zip(alone, generated, strict=False):
        for token_id in ids:
            grammar.accept(token_id)
    assert masks([choice.grammar for choice in choices[:3]]) == masks(alone)
    assert [choice.is_finished for choice in choices] == [False, False, False, True]


def test_choices_draw_with_seeds_that_follow_each_other(executor: CountingExecutor) -> None:
    choices = make_choices(engine_request(n=3, seed=7), executor)

    assert [choice.seed for choice in choices] == [7, 8, 9]
    assert [choice.grammar for choice in choices] == [None] * 3


def test_grammar_that_cannot_be_compiled_refuses_all_choices(executor: CountingExecutor) -> None:
    with pytest.raises(EngineError) as refused:
        make_choices(engine_request(n=3, grammar=lark_grammar("start: x")), executor)

    assert refused.value.code == "invalid_grammar"
    assert executor.num_compiled == 1
