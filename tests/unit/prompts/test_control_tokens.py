"""Control tokens in text: all are found, at whatever length, and what isn't one is left."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.prompts.control_tokens import STRETCH, ControlTokens

TOKENS = ("<s>", "</s>", "<s>>", "<|a|>", "<|ab|>", "<|ab|>c", "[X]", "X", "", "<|a|>")
PIECES = st.sampled_from([*TOKENS, "<", "|", ">", "<|", "|>", "a", "b", "c", "<s", "x" * 9])

# As of a model that has very many, in whose beginnings a text can be rich.
RESERVED = [f"<|reserved_special_token_{n}|>" for n in range(250)] + ["<s>", "[INST]"]


def _longest_first() -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(filter(None, TOKENS), key=len, reverse=True))))


@given(pieces=st.lists(PIECES, max_size=30))
def test_of_two_that_begin_alike_the_longer_one_is_found(pieces: list[str]) -> None:
    text, tokens = "".join(pieces), ControlTokens(TOKENS)
    found = _longest_first().findall(text)

    assert tokens.count(text) == len(found)
    assert tokens.are_in(text) is bool(found)
    assert tokens.break_up(text, "#") == _longest_first().sub(
        lambda match: f"{match[0][:-1]}#{match[0][-1]}", text
    )


@pytest.mark.parametrize("at", range(STRETCH - 8, STRETCH + 3))
def test_one_that_lies_across_two_stretches_is_found_whole(at: int) -> None:
    tokens = ControlTokens(TOKENS)
    text = "." * at + "<|ab|>c" + "." * STRETCH

    assert tokens.count(text) == 1
    assert tokens.break_up(text, "#") == "." * at + "<|ab|>#c" + "." * STRETCH


def test_a_model_may_have_none() -> None:
    tokens = ControlTokens([])

    assert not tokens.are_in("<s>")
    assert tokens.count("<s>") == 0
    assert tokens.break_up("<s>", "#") == "<s>"


@pytest.mark.parametrize("text", ["<|", RESERVED[0][:-2], "<", "[INST"])
def test_beginnings_of_very_many_cost_little(text: str) -> None:
    tokens = ControlTokens(RESERVED)
    began = time.thread_time()

    assert not tokens.are_in(text * (500_000 // len(text)))
    assert time.thread_time() - began < 0.1
