"""What a model may write under each tool choice, by the engine's own compiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from api.tools.formats import format_named
from api.tools.grammar import tool_grammar
from api.tools.request import Tool, ToolMode, ToolUse
from workers.inference.engine.errors import EngineError
from workers.inference.engine.grammar import GrammarCompiler

TOKENIZER = Tokenizer.from_file(
    str(Path(__file__).parents[3] / "models" / "demo" / "demo" / "tokenizer.json")
)
END = TOKENIZER.token_to_id("<|end|>")
assert END is not None
COMPILER = GrammarCompiler(TOKENIZER, TOKENIZER.get_vocab_size(), [END])
SPECIAL = frozenset({"<|tool_call|>", "<|tool_call_end|>"})
UNIT = {"enum": ["c", "f"]}
TOOLS = [
    Tool(
        "get_weather",
        "Weather",
        {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"$ref": "#/$defs/Unit"}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"Unit": UNIT},
        },
    ),
    Tool("noop", None, {"type": "object", "properties": {}}),
]
ANSWER: dict[str, Any] = {
    "type": "object",
    "properties": {"q": {"type": "integer"}},
    "required": ["q"],
    "additionalProperties": False,
}


def _call(format_: str, name: str = "get_weather", arguments: str | None = None) -> str:
    form = format_named(format_)
    arguments = arguments or '{"city": "Paris", "unit": "c"}'
    return f'{form.begin}{{"name": "{name}", "{form.arguments_key}": {arguments}}}{form.end}'


def _accepts(
    format_: str,
    text: str,
    *,
    mode: ToolMode = ToolMode.AUTO,
    names: frozenset[str] = frozenset({"get_weather", "noop"}),
    is_parallel: bool = True,
    answer: dict[str, Any] | None = None,
) -> bool:
    use = ToolUse(tools=TOOLS, mode=mode, callable_names=names, is_parallel=is_parallel)
    grammar = COMPILER.compile(
        tool_grammar(use, format_named(format_), special_tokens=SPECIAL, answer_schema=answer).text
    )
    try:
        for token_id in TOKENIZER.encode(text, add_special_tokens=False).ids:
            grammar.accept(token_id)
    except EngineError:
        return False
    return bool(grammar.matcher.is_accepting())


@pytest.mark.parametrize("format_", ["pipes", "hermes", "llama3"])
class TestEveryFormat:
    def test_auto_takes_a_text_or_a_call(self, format_: str) -> None:
        assert _accepts(format_, "hello <tool world {")
        assert _accepts(format_, _call(format_))

    def test_arguments_follow_their_schema(self, format_: str) -> None:
        assert not _accepts(format_, _call(format_, arguments='{"city": 3}'))
        assert not _accepts(format_, _call(format_, arguments='{"city": "x", "unit": "k"}'))
        assert not _accepts(format_, _call(format_, name="other"))

    def test_required_takes_calls_alone(self, format_: str) -> None:
        assert _accepts(format_, _call(format_), mode=ToolMode.REQUIRED)
        assert not _accepts(format_, "hello", mode=ToolMode.REQUIRED)

    def test_a_named_function_is_the_only_one(self, format_: str) -> None:
        names = frozenset({"noop"})
        noop = _call(format_, "noop", "{}")

        assert _accepts(format_, noop, mode=ToolMode.REQUIRED, names=names)
        assert not _accepts(format_, _call(format_), mode=ToolMode.REQUIRED, names=names)

    def test_an_answer_has_its_form_or_is_a_call(self, format_: str) -> None:
        assert _accepts(format_, '{"q": 3}', answer=ANSWER)
        assert _accepts(format_, _call(format_), answer=ANSWER)
        assert not _accepts(format_, "hello", answer=ANSWER)


@pytest.mark.parametrize("format_", ["pipes", "hermes"])
def test_several_calls_only_where_they_may_be_parallel(format_: str) -> None:
    two = f"{_call(format_)}\n{_call(format_)}"

    assert _accepts(format_, two)
    assert not _accepts(format_, two, is_parallel=False)


def _takes_arguments(parameters: dict[str, Any], arguments: str) -> bool:
    tool = Tool("f", None, parameters)
    use = ToolUse(tools=[tool], mode=ToolMode.REQUIRED, callable_names=frozenset({"f"}))
    text = tool_grammar(use, format_named("pipes"), special_tokens=SPECIAL).text
    grammar = COMPILER.compile(text)
    try:
        for token_id in TOKENIZER.encode(
            _call("pipes", "f", arguments), add_special_tokens=False
        ).ids:
            grammar.accept(token_id)
    except EngineError:
        return False
    return bool(grammar.matcher.is_accepting())


INNER: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        (INNER, '{"a": 1}'),
        ({"type": "object", "properties": {"in": INNER}}, '{"in": {"a": 1}}'),
        (
            {
                "type": "object",
                "properties": {"in": {"$ref": "#/$defs/In"}},
                "$defs": {"In": INNER},
            },
            '{"in": {"a": 1}}',
        ),
        (
            {"type": "object", "properties": {"in": {"type": "array", "items": INNER}}},
            '{"in": [{"a": 1}]}',
        ),
    ],
    ids=["itself", "inside", "referred to", "in a list"],
)
def test_arguments_hold_no_names_that_the_schema_lacks(
    schema: dict[str, Any], arguments: str
) -> None:
    assert _takes_arguments(schema, arguments)
    assert not _takes_arguments(schema, arguments.replace('"a": 1', '"b": 1'))


@pytest.mark.parametrize(
    "schema",
    [
        {**INNER, "additionalProperties": True},
        {**INNER, "additionalProperties": {"type": "integer"}},
        {**INNER, "required": ["b"]},
        {"type": "object"},
        {"allOf": [INNER, {"type": "object", "properties": {"b": {"type": "integer"}}}]},
    ],
    ids=["said to", "typed", "required", "nothing named", "combined"],
)
def test_objects_that_are_meant_to_be_open_stay_open(schema: dict[str, Any]) -> None:
    assert _takes_arguments(schema, '{"b": 1}')


def test_a_property_called_properties_is_a_property() -> None:
    schema = {"type": "object", "properties": {"properties": {"type": "string"}}}

    assert _takes_arguments(schema, '{"properties": "x"}')
    assert not _takes_arguments(schema, '{"other": "x"}')
