"""The checker and its sandbox: what no worker could compile is refused, whatever it does to it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from api.grammars import checker as checker_module
from api.grammars import sandbox
from api.grammars.checker import GrammarChecker
from api.grammars.formats import Grammar
from api.grammars.process import TOO_COSTLY, TokenizerFile
from tasks.errors import (
    InvalidGrammar,
    ServiceUnavailable,
    UnsupportedParameter,
)
from tests.support.tiny_tokenizer import tiny_tokenizer

TENANT = UUID(int=1)


def tokenizer_file(text: str = "", *, sha256: str = "tiny") -> TokenizerFile:
    async def read() -> tuple[str, str | None]:
        return text or tiny_tokenizer().to_str(), "<|end|>"

    return TokenizerFile(sha256, read)


@pytest.fixture
async def checker() -> AsyncIterator[GrammarChecker]:
    checker = GrammarChecker()
    yield checker
    await checker.close()


def schema(schema: Any) -> Grammar:
    return Grammar(json.dumps({"grammars": [{"json_schema": schema}]}), "the.param", "schema")


def lark(text: str) -> Grammar:
    return Grammar(json.dumps({"grammars": [{"lark_grammar": text}]}), "the.param", "grammar")


def chain(length: int) -> Grammar:
    """Each definition refers to the next: what overflows the stack of a recursive compiler."""
    definitions: dict[str, Any] = {
        f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(length)
    }
    return schema({"$ref": "#/$defs/d0", "$defs": definitions | {f"d{length}": {}}})


# A few hundred bytes that keep the compiler busy for minutes.
SLOW = schema({"allOf": [{"type": "string", "pattern": f".*a.{{{i}}}b.*"} for i in range(1, 40)]})
HUGE = schema({"type": "integer", "multipleOf": 99_999_989})
GOOD = schema({"type": "object", "properties": {"a": {"type": "string", "maxLength": 9}}})


async def check(
    checker: GrammarChecker,
    grammar: Grammar,
    *,
    tenant_id: UUID = TENANT,
    tokenizer: TokenizerFile | None = None,
) -> None:
    await checker.check(grammar, tokenizer=tokenizer or tokenizer_file(), tenant_id=tenant_id)


REASONS: dict[str, tuple[Grammar, str]] = {
    "keyword": (
        schema({"type": "array", "uniqueItems": True}),
        'Unimplemented keys: ["uniqueItems"]',
    ),
    "type": (schema({"type": "objct"}), "Invalid type: objct"),
    "range": (schema({"type": "integer", "minimum": 3, "maximum": 1}), "Unsatisfiable schema"),
    "pattern": (schema({"type": "string", "pattern": "("}), "unclosed group"),
    "reference": (schema({"$ref": "#/$defs/a"}), "Pointer '/$defs/a' does not exist"),
    "remote": (schema({"$ref": "http://localhost/a"}), "it refers to another document"),
    "endless": (schema({"$ref": "#"}), "no text matches it"),
    "oneOf": (schema({"oneOf": [{}, {}]}), "must exclude each other"),
    "combinations": (
        schema(
            {
                "allOf": [
                    {"anyOf": [{"properties": {f"{i}.{j}": {}}} for j in range(4)]}
                    for i in range(9)
                ]
            }
        ),
        "schema too large",
    ),
    "regex": (lark("start: /secret(/"), "unclosed group"),
    "look-ahead": (lark("start: /(?=a)b/"), "look-around"),
    "syntax": (lark('start "a"'), "1(7): Expected token ':'"),
    "no start": (lark('begin: "a"'), "no start rule found"),
    "endless rule": (lark("start: start"), "no text matches it"),
    "deep": (lark("start: " + "(" * 2_000 + '"a"' + ")" * 2_000), "too deeply nested"),
    "no JSON": (Grammar("{", "the.param", "grammar"), "EOF while parsing"),
    "slow": (SLOW, TOO_COSTLY),
    "huge": (HUGE, TOO_COSTLY),
    "overflows the stack": (chain(1_400), TOO_COSTLY),
}


async def test_what_can_not_be_compiled_is_refused_with_the_reason(checker: GrammarChecker) -> None:
    for name, (grammar, reason) in REASONS.items():
        with pytest.raises(InvalidGrammar) as refused:
            await check(checker, grammar, tenant_id=uuid4())

        assert reason in refused.value.message, name
        assert "secret" not in refused.value.message, name
        assert len(refused.value.message) < 300, name
        assert "\n" not in refused.value.message, name
        assert refused.value.param == "the.param"
        await check(checker, lark(f'start: "after {name}"'))  # the sandbox is there again


async def test_good_grammar_passes(checker: GrammarChecker) -> None:
    await check(checker, GOOD)


async def test_verdict_is_remembered(checker: GrammarChecker) -> None:
    async def read() -> tuple[str, str | None]:
        raise AssertionError("the sandbox was asked again")

    await check(checker, GOOD)
    with pytest.raises(InvalidGrammar):
        await check(checker, SLOW)
    await checker.close()

    closed = TokenizerFile("tiny", read)
    await check(checker, GOOD, tokenizer=closed)
    with pytest.raises(InvalidGrammar):
        await check(checker, SLOW, tokenizer=closed)


async def test_verdicts_are_forgotten_in_the_order_of_use(
    checker: GrammarChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checker_module, "MAX_VERDICTS", 2)
    first, second, third = (lark(f'start: "{name}"') for name in "abc")

    for grammar in (first, second, first, third):
        await check(checker, grammar)

    kept = set(checker._verdicts)
    tokenizer = tokenizer_file()
    assert kept == {checker_module._key(grammar, tokenizer) for grammar in (first, third)}


async def test_equal_grammars_at_once_are_compiled_once(checker: GrammarChecker) -> None:
    checks = [check(checker, SLOW, tenant_id=uuid4()) for _ in range(5)]

    async with asyncio.timeout(4 * sandbox.MAX_CPU_S):
        results = await asyncio.gather(*checks, return_exceptions=True)

    assert [type(result) for result in results] == [InvalidGrammar] * 5


async def test_many_new_grammars_of_one_tenant_wait_their_turn(checker: GrammarChecker) -> None:
    checks = [check(checker, lark(f'start: "{number}"')) for number in range(32)]

    assert await asyncio.gather(*checks) == [None] * 32
    assert not checker._queue.num_waiting


async def test_what_has_begun_goes_on_when_its_client_leaves(checker: GrammarChecker) -> None:
    """Else each client that comes and goes would cost the others a sandbox."""
    await check(checker, GOOD)
    process = checker._sandbox._process
    leaving = asyncio.create_task(check(checker, lark('start: "x"')))
    async with asyncio.timeout(10):
        while checker._running is None or checker._running.done():
            await asyncio.sleep(0)  # it takes a few ms: to look now and then would miss it
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)

    await check(checker, lark('start: "y"'))

    assert checker._sandbox._process is process
    assert checker_module._key(lark('start: "x"'), tokenizer_file()) in checker._verdicts


async def test_answer_of_a_cancelled_check_is_not_taken_for_anothers(
    checker: GrammarChecker,
) -> None:
    await check(checker, GOOD)
    cancelled = asyncio.create_task(check(checker, SLOW))
    await asyncio.sleep(0)  # it has asked now
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)

    with pytest.raises(InvalidGrammar, match="Invalid type"):
        await check(checker, schema({"type": "objct"}))


async def test_sandbox_that_somebody_killed_says_nothing_about_the_grammar(
    checker: GrammarChecker,
) -> None:
    await check(checker, GOOD)
    process = checker._sandbox._process
    assert process is not None
    asking = asyncio.create_task(check(checker, SLOW))
    await asyncio.sleep(0)

    process.kill()

    with pytest.raises(ServiceUnavailable):
        await asking
    await check(checker, lark('start: "a"'))


async def test_model_whose_tokenizer_is_no_use_has_no_structured_output(
    checker: GrammarChecker,
) -> None:
    broken = tokenizer_file("{}", sha256="broken")

    for _ in range(2):
        with pytest.raises(UnsupportedParameter) as refused:
            await check(checker, GOOD, tokenizer=broken)
        assert refused.value.param == "the.param"
    await check(checker, GOOD)


def test_sandbox_ends_with_its_input() -> None:
    done = subprocess.run(
        [sys.executable, "-I", sandbox.__file__], input=b"", timeout=30, check=False
    )

    assert done.returncode == 0
