"""What each way to ask for a form accepts and refuses, and what is too large to try."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from pydantic import ValidationError

from api.errors import invalid_request
from api.grammars import sandbox
from api.grammars.formats import requested_form
from api.grammars.limits import (
    MAX_CHOICES,
    MAX_GRAMMAR_BYTES,
    MAX_REGEX_CHARS,
    MAX_SCHEMA_DEPTH,
    MAX_SCHEMA_ENUM_VALUES,
    MAX_SCHEMA_PROPERTIES,
)
from api.schemas.structured_outputs import StructuredOutputFields
from tasks.errors import InvalidGrammar, InvalidRequest
from tests.support.tiny_tokenizer import tiny_tokenizer
from workers.inference.engine import grammar as engine

TOKENIZER = LLTokenizer(tiny_tokenizer().to_str())
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}


def schema_format(schema: Any, **fields: Any) -> dict[str, Any]:
    json_schema = {"name": "answer", "schema": schema} | fields
    return {"response_format": {"type": "json_schema", "json_schema": json_schema}}


def structured(**fields: Any) -> dict[str, Any]:
    return {"structured_outputs": fields}


def grammar_text(fields: dict[str, Any]) -> str:
    grammar = requested_form(StructuredOutputFields.model_validate(fields))
    assert grammar is not None
    return grammar.text


def is_accepted(grammar: str, text: str) -> bool:
    """Is this text complete in the grammar?"""
    matcher = LLMatcher(TOKENIZER, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = TOKENIZER.tokenize_str(text)
    return bool(matcher.consume_tokens(tokens) and matcher.is_accepting())


# Kinds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", [None, {"type": "text"}])
def test_free_text_needs_no_grammar(format_: Any) -> None:
    fields = StructuredOutputFields.model_validate({"response_format": format_})

    assert requested_form(fields) is None


@pytest.mark.parametrize(
    ("fields", "accepted", "refused"),
    [
        (
            {"response_format": {"type": "json_object"}},
            ["{}", '{"a": [1, "b", null]}'],
            ["[]", "1", '"a"', ""],
        ),
        (
            schema_format(POINT),
            ['{"x":1,"y":2}', '{ "x": 1,\n  "y": -2 }'],
            ['{"x":1}', '{"y":1,"x":2}', '{"x":1,"y":2,"z":3}', '{"x":"1","y":2}'],
        ),
        (schema_format(POINT, strict=False), ['{"x":1,"y":2}'], ['{"x":1}']),
        (schema_format({"type": "array", "items": {"const": "a"}}), ["[]", '["a"]'], ['["b"]']),
        (structured(json=POINT), ['{"x":1,"y":2}'], ["{}"]),
        (structured(json=json.dumps(POINT)), ['{"x":1,"y":2}'], ["{}"]),
        (structured(regex=r"\d{3}-(a|/)"), ["123-a", "007-/"], ["123-", "12-a", "123-a "]),
        (structured(regex="^ab$"), ["ab"], ["a", "xab", "abx"]),
        (structured(regex="a\nb"), ["a\nb"], ["a b"]),
        (structured(choice=["yes", "no", "yes, but"]), ["yes", "no", "yes, but"], ["maybe", ""]),
        (
            structured(choice=['"q"\\', "\x7f\x01", "line\nline", "ünï 😀", "\u2028"]),
            ['"q"\\', "\x7f\x01", "line\nline", "ünï 😀", "\u2028"],
            ['"q"'],
        ),
        (
            structured(grammar='start: "(" start ")" | "x"'),
            ["x", "((x))"],
            ["(x", "()"],
        ),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_kind_accepts_what_it_says_and_nothing_else(
    fields: dict[str, Any], accepted: list[str], refused: list[str]
) -> None:
    grammar = grammar_text(fields)

    assert [text for text in accepted if not is_accepted(grammar, text)] == []
    assert [text for text in refused if is_accepted(grammar, text)] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        schema_format(POINT),
        structured(regex="a+"),
        structured(choice=["a", "b"]),
        structured(grammar='start: "a"'),
    ],
)
def test_grammar_has_the_form_the_engine_reads(fields: dict[str, Any]) -> None:
    compiler = engine.GrammarCompiler(tiny_tokenizer(), 320, {4})

    compiled = compiler.compile(grammar_text(fields))

    assert compiled.error is None


def test_properties_keep_the_order_of_the_schema() -> None:
    backwards = POINT | {"properties": {"y": {"type": "integer"}, "x": {"type": "integer"}}}

    assert is_accepted(grammar_text(schema_format(backwards)), '{"y":1,"x":2}')
    assert not is_accepted(grammar_text(schema_format(backwards)), '{"x":1,"y":2}')


def test_whitespace_inside_json_is_bounded() -> None:
    grammar = grammar_text(schema_format(POINT))

    assert is_accepted(grammar, '{"x":' + " " * 40 + '1,"y":2}')
    assert not is_accepted(grammar, '{"x":' + " " * 41 + '1,"y":2}')


def test_a_schemas_own_compiler_options_change_nothing() -> None:
    options = {"lenient": True, "whitespace_pattern": "x*"}

    assert grammar_text(schema_format(POINT | {"x-guidance": options})) == grammar_text(
        schema_format(POINT)
    )


# Limits --------------------------------------------------------------------------------------


def nested(levels: int) -> dict[str, Any]:
    """A schema of so many levels."""
    schema: dict[str, Any] = {}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        nested(MAX_SCHEMA_DEPTH),
        {"properties": {f"p{i}": {} for i in range(MAX_SCHEMA_PROPERTIES)}},
        {"enum": list(range(MAX_SCHEMA_ENUM_VALUES))},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}},
        {"properties": {"$ref": {"type": "string"}}},
        {"const": {"$ref": "http://elsewhere"}},
        {"minProperties": 3, "required": ["a", "b"]},
        {"exclusiveMinimum": 0, "maximum": 1},
        {"exclusiveMinimum": 0.5, "maximum": 0.6},
    ],
    ids=[
        "depth",
        "properties",
        "enum",
        "local reference",
        "property named $ref",
        "data",
        "one key of its own",
        "whole bound, open",
        "fraction, open",
    ],
)
def test_schema_at_its_limits_is_taken(schema: dict[str, Any]) -> None:
    assert grammar_text(schema_format(schema))


LARGE = {
    "depth": (nested(MAX_SCHEMA_DEPTH + 1), "nested more than 32 levels"),
    "properties": (
        {
            "anyOf": [{"properties": {f"p{i}": {} for i in range(MAX_SCHEMA_PROPERTIES // 2 + 1)}}]
            * 2
        },
        "more than 5000 properties",
    ),
    "enum": ({"enum": [0] * (MAX_SCHEMA_ENUM_VALUES + 1)}, "more than 5000 enum values"),
    "bytes": ({"const": "x" * MAX_GRAMMAR_BYTES}, "larger than 131072 bytes"),
    "remote": ({"$ref": "https://example.com/a.json"}, "'$ref' may refer to"),
    "file": ({"items": [{"$ref": "file:///etc/passwd"}]}, "'$ref' may refer to"),
    "relative": ({"allOf": [{"$ref": "a.json#/b"}]}, "'$ref' may refer to"),
    "many keys of its own": ({"minProperties": 2}, "'minProperties' may exceed"),
    "whole bound, open, near another": (
        {"items": {"exclusiveMinimum": 0, "maximum": 0.1}},
        "whole 'exclusiveMinimum'",
    ),
}


@pytest.mark.parametrize(("schema", "reason"), LARGE.values(), ids=LARGE.keys())
@pytest.mark.parametrize("param", ["response_format.json_schema.schema", "structured_outputs.json"])
def test_schema_beyond_a_limit_is_refused_with_the_reason(
    schema: dict[str, Any], reason: str, param: str
) -> None:
    fields = schema_format(schema) if param.startswith("response") else structured(json=schema)

    with pytest.raises(InvalidGrammar, match=reason.replace("$", r"\$")) as refused:
        grammar_text(fields)

    assert refused.value.param == param


def test_lark_text_that_grows_when_it_is_serialised_is_refused() -> None:
    with pytest.raises(InvalidGrammar) as refused:
        grammar_text(structured(grammar="\x01" * 30_000))

    assert refused.value.param == "structured_outputs.grammar"


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown type": ({"response_format": {"type": "yaml"}}, "response_format.type"),
    "no schema": (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
    ),
    "schema with another type": (
        {"response_format": schema_format(POINT)["response_format"] | {"type": "text"}},
        "response_format.json_schema",
    ),
    "no name": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": POINT}}},
        "response_format.json_schema.name",
    ),
    "odd name": (schema_format(POINT, name="a b"), "response_format.json_schema.name"),
    "schema no object": (schema_format(True), "response_format.json_schema.schema"),
    "unknown field": (schema_format(POINT, depth=1), "response_format.json_schema.depth"),
    "nothing": (structured(), "structured_outputs"),
    "two at once": (structured(regex="a", choice=["a"]), "structured_outputs"),
    "no JSON": (structured(json="{"), "structured_outputs.json"),
    "JSON, but no object": (structured(json="[1]"), "structured_outputs.json"),
    "empty regex": (structured(regex=""), "structured_outputs.regex"),
    "long regex": (structured(regex="a" * (MAX_REGEX_CHARS + 1)), "structured_outputs.regex"),
    "no choice": (structured(choice=[]), "structured_outputs.choice"),
    "empty choice": (structured(choice=["a", ""]), "structured_outputs.choice.1"),
    "choice of numbers": (structured(choice=[1]), "structured_outputs.choice.0"),
    "many choices": (structured(choice=["a"] * (MAX_CHOICES + 1)), "structured_outputs.choice"),
}


@pytest.mark.parametrize(("fields", "param"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ValidationError) as refused:
        StructuredOutputFields.model_validate(fields)

    assert invalid_request(refused.value).param == param


def test_both_fields_at_once_are_refused() -> None:
    with pytest.raises(InvalidRequest) as refused:
        grammar_text(schema_format(POINT) | structured(regex="a"))

    assert refused.value.param == "structured_outputs"


def test_whatever_passes_the_api_is_within_the_engines_limits() -> None:
    assert sandbox.LIMITS == engine._LIMITS
    assert MAX_GRAMMAR_BYTES <= engine.MAX_GRAMMAR_BYTES
