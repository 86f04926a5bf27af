"""What no worker could compile is refused within bounded time, whatever it does to the sandbox."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.structured import json_grammar, lark_grammar
from tests.support.tiny_models import EOS_TOKEN_ID, byte_level_tokenizer
from workers.inference.engine import grammar as grammar_module
from workers.inference.engine import grammar_guard
from workers.inference.engine.errors import EngineError
from workers.inference.engine.grammar import GrammarCompiler
from workers.inference.engine.grammar_guard import GrammarGuard, TokenizerSource

TOKENIZER = byte_level_tokenizer()
TOO_COSTLY = "it takes too much time or memory to compile"
GOOD = lark_grammar("start: /[0-9]{4}/")


def chain(length: int) -> str:
    """Each definition refers to the next: what overflows the stack of a recursive compiler."""
    definitions: dict[str, Any] = {
        f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(length)
    }
    return json_grammar({"$ref": "#/$defs/d0", "$defs": definitions | {f"d{length}": {}}})


# A few hundred bytes that keep the compiler busy for minutes, or for hours.
SLOW = json_grammar(
    {"allOf": [{"type": "string", "pattern": f".*a.{{{i}}}b.*"} for i in range(1, 40)]}
)
HUGE = json_grammar({"type": "integer", "multipleOf": 99_999_989})


def source(key: str = "tiny", text: str | None = None) -> TokenizerSource:
    size = TOKENIZER.get_vocab_size()
    return TokenizerSource(key, lambda: text or TOKENIZER.to_str(), size, (EOS_TOKEN_ID,))


@pytest.fixture
def guard() -> Iterator[GrammarGuard]:
    guard = GrammarGuard(grammar_module._LIMITS)
    yield guard
    guard.close()


@pytest.mark.parametrize(
    "grammar", [SLOW, HUGE, chain(5_000)], ids=["slow", "huge", "overflows the stack"]
)
def test_hostile_grammar_fails_its_request_alone_and_soon(grammar: str) -> None:
    compiler = GrammarCompiler(TOKENIZER, TOKENIZER.get_vocab_size(), {EOS_TOKEN_ID})
    started = time.monotonic()

    with pytest.raises(EngineError, match=TOO_COSTLY) as caught:
        compiler.compile(grammar)

    assert (caught.value.code, caught.value.retryable) == ("invalid_grammar", False)
    assert time.monotonic() - started < 30
    assert not compiler.compile(GOOD).is_stopped


def test_reason_is_that_of_the_compiler(guard: GrammarGuard) -> None:
    reason = guard.refusal(source(), lark_grammar("start: /a(/"))

    assert reason is not None
    assert "unclosed group" in reason
    assert guard.refusal(source(), GOOD) is None


def test_verdict_is_remembered(guard: GrammarGuard) -> None:
    assert guard.refusal(source(), HUGE) == TOO_COSTLY
    process = guard._process

    assert guard.refusal(source(), HUGE) == TOO_COSTLY
    assert guard._process is process is None


def test_verdicts_are_forgotten_in_the_order_of_use(
    guard: GrammarGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_guard, "_MAX_VERDICTS", 2)
    first, second, third = (lark_grammar(f'start: "{name}"') for name in "abc")

    for grammar in (first, second, first, third):
        guard.refusal(source(), grammar)
    asked: list[str] = []
    monkeypatch.setattr(guard, "_find_out", lambda source, grammar: asked.append(grammar))
    guard.refusal(source(), first)
    guard.refusal(source(), second)

    assert asked == [second]


def test_process_that_somebody_killed_says_nothing_about_the_grammar(guard: GrammarGuard) -> None:
    guard.refusal(source(), GOOD)
    process = guard._process
    assert process is not None
    killer = threading.Timer(0.3, process.kill)
    killer.start()

    with pytest.raises(EngineError) as caught:
        guard.refusal(source(), HUGE)

    killer.join()
    assert (caught.value.code, caught.value.retryable) == ("engine_error", True)
    assert guard.refusal(source(), lark_grammar("start: /a/")) is None


def test_answer_that_does_not_come_in_time_says_nothing_about_the_grammar(
    guard: GrammarGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard.refusal(source(), GOOD)
    monkeypatch.setattr(grammar_guard, "_ANSWER_TIMEOUT_S", 0.2)

    with pytest.raises(EngineError, match="in time") as caught:
        guard.refusal(source(), HUGE)

    assert caught.value.retryable


def test_tokenizer_that_can_not_be_read_says_nothing_about_the_grammar(
    guard: GrammarGuard,
) -> None:
    with pytest.raises(EngineError) as caught:
        guard.refusal(source("broken", "{}"), GOOD)

    assert caught.value.retryable
    assert guard.refusal(source(), GOOD) is None


def test_two_tokenizers_are_told_apart(guard: GrammarGuard) -> None:
    assert guard.refusal(source("one"), GOOD) is None
    assert guard.refusal(source("other"), GOOD) is None
    assert guard._loaded == {"one", "other"}


def test_worker_compiles_under_the_limits_that_the_grammar_was_tried_under(
    guard: GrammarGuard,
) -> None:
    assert json.loads(guard._limits)["parser"] == grammar_module._LIMITS
