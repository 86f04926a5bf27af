"""Schemas that no finite text satisfies are found, and none that some text satisfies."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from api.grammars.finite import Looks, can_end
from tests.support.json_schemas import random_schema
from tests.support.tiny_tokenizer import tiny_tokenizer

SELF = {"$ref": "#"}
TOKENIZER = LLTokenizer(tiny_tokenizer().to_str())


def exact(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    required = {"required": list(properties), "additionalProperties": False}
    return {"type": "object", "properties": properties, **required, **more}


def array(items: Any, least: int = 0, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, **more}


def two(a: Any, b: Any) -> dict[str, Any]:
    return {"$ref": "#/$defs/a", "$defs": {"a": a, "b": b}}


A, B = {"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}
EMPTY = {"type": "integer", "minimum": 3, "maximum": 1}

ENDLESS: dict[str, Any] = {
    "itself": exact({"a": SELF}),
    "itself and more": exact({"a": SELF, "b": {"type": "integer"}}),
    "open to others": {"type": "object", "properties": {"a": SELF}, "required": ["a"]},
    "of a list of types": {"type": ["object"], "properties": {"a": SELF}, "required": ["a"]},
    "array of itself": array(SELF, 1),
    "tuple of itself": {"type": "array", "prefixItems": [SELF], "minItems": 1},
    "second of a tuple": {"type": "array", "prefixItems": [{}, SELF], "minItems": 2},
    "behind a tuple": {"type": "array", "prefixItems": [{}], "items": SELF, "minItems": 2},
    "old tuple": {"type": "array", "items": [SELF], "minItems": 1},
    "array inside": array(array(SELF, 2), 1),
    "each other": two(exact({"b": B}), exact({"a": A})),
    "through an array": two(exact({"b": array(B, 1)}), exact({"a": A})),
    "every alternative": {"anyOf": [exact({"a": SELF}), exact({"b": SELF})]},
    "the one alternative": {"oneOf": [exact({"a": SELF}), EMPTY]},
    "one of all": {"allOf": [{"type": "object"}, exact({"a": SELF})]},
    "required beside": {
        "allOf": [{"type": "object", "properties": {"a": SELF}}, {"required": ["a"]}]
    },
    "required by each": {
        "type": "object",
        "properties": {"a": SELF, "b": SELF},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    "any name": {"type": "object", "required": ["x"], "additionalProperties": SELF},
    "any name, one at least": {"type": "object", "minProperties": 1, "additionalProperties": SELF},
    "one of its names at least": {
        "type": "object",
        "properties": {"a": SELF},
        "minProperties": 1,
        "additionalProperties": False,
    },
    "by a pattern": {
        "type": "object",
        "patternProperties": {"^a$": SELF},
        "required": ["a"],
        "additionalProperties": False,
    },
    "never": exact({"a": {"anyOf": [SELF, False]}}),
    "a range of nothing": exact({"a": {"anyOf": [SELF, EMPTY]}}),
    "a text of no length": exact(
        {"a": {"anyOf": [SELF, {"type": "string", "minLength": 2, "maxLength": 1}]}}
    ),
    "a full object": exact({"a": {"anyOf": [SELF, exact({"x": {}, "y": {}}, maxProperties=1)]}}),
    "old name": {"$ref": "#/definitions/n", "definitions": {"n": array({"$ref": "#"}, 1)}},
    "escaped name": {"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": array(SELF, 1)}},
    "place in a list": {"anyOf": [array({"$ref": "#/anyOf/0"}, 1)]},
}

FINITE: dict[str, Any] = {
    "not required": {"type": "object", "properties": {"a": SELF}},
    "array that may be empty": array(SELF),
    "tuple that may be empty": {"type": "array", "prefixItems": [SELF]},
    "first of a tuple": {"type": "array", "prefixItems": [{}, SELF], "minItems": 1},
    "null instead": exact({"a": {"anyOf": [{"type": "null"}, SELF]}}),
    "other types": {"properties": {"a": SELF}, "required": ["a"]},
    "or a text": {"type": ["object", "string"], "properties": {"a": SELF}, "required": ["a"]},
    "or an array": {"type": ["array", "object"], "required": ["a"], "properties": {"a": SELF}},
    "each other, one may stop": two(exact({"b": B}), {"type": "object", "properties": {"a": A}}),
    "a tree": exact({"value": {"type": "integer"}, "children": array(SELF)}),
    "other names": {"type": "object", "minProperties": 1, "properties": {"a": SELF}},
    "a constant": exact({"a": {"anyOf": [SELF, {"const": 1}]}}),
    "other names of all": {"allOf": [{"properties": {"a": SELF}}, {"required": ["b"]}]},
    "an anchor": exact({"a": {"$ref": "#x"}, "b": {"$anchor": "x"}}),
    "nowhere": exact({"a": {"$ref": "#/$defs/none"}}),
    "negative": array(SELF, -1),
    "odd values": {"type": 3, "required": [{}, 1], "properties": [], "minItems": "1", "anyOf": {}},
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_has_no_end_is_found(name: str) -> None:
    assert not can_end(ENDLESS[name], Looks())


@pytest.mark.parametrize("name", FINITE)
def test_what_can_end_is_left_alone(name: str) -> None:
    assert can_end(FINITE[name], Looks())


@pytest.mark.parametrize("name", ENDLESS)
def test_what_can_end_besides_is_left_alone(name: str) -> None:
    """The same where a text is good as well."""
    schema = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/other"}]}
    document = json.dumps(ENDLESS[name]).replace('"#"', '"#/$defs/other"')
    moved = document.replace('"#/', '"#/$defs/other/').replace("other/$defs/other", "other")

    assert can_end(schema | {"$defs": {"other": json.loads(moved)}}, Looks())


def test_no_schema_that_a_text_satisfies_is_refused() -> None:
    for seed in range(500):
        # Without a reference nothing is looked at.
        optional = {"anyOf": [{"type": "null"}, SELF]}
        assert can_end(exact({"a": random_schema(seed), "b": optional}), Looks()), seed


def test_it_is_as_the_compiler_sees_it_without_the_recursion() -> None:
    """What has a text at all has one that comes to no definition twice on a way down."""
    num_endless = 0
    for seed in range(300):
        schema = _recursive_schema(random.Random(seed))
        is_finite = _compiles(_unrolled(schema, schema["$defs"], 4))

        assert can_end(schema, Looks()) is is_finite, schema
        num_endless += not is_finite
    assert 30 < num_endless < 270


def _recursive_schema(chance: random.Random) -> dict[str, Any]:
    return {"$ref": "#/$defs/d0", "$defs": {f"d{n}": _any(chance, 2) for n in range(3)}}


def _any(chance: random.Random, depth: int) -> dict[str, Any]:
    kind = chance.choice(["leaf", "ref"] if depth == 0 else ["ref", "object", "array", "anyOf"])
    if kind == "leaf":
        return chance.choice([{"type": "string"}, {"type": "integer"}, {"type": "null"}, EMPTY])
    if kind == "ref":
        return {"$ref": f"#/$defs/d{chance.randrange(3)}"}
    if kind == "anyOf":
        return {"anyOf": [_any(chance, depth - 1) for _ in range(chance.randint(1, 2))]}
    if kind == "array":
        tuple_ = {"prefixItems": [_any(chance, depth - 1)]} if chance.random() < 0.3 else {}
        return array(_any(chance, depth - 1), chance.randint(0, 2), **tuple_)
    names = chance.sample("abc", chance.randint(0, 3))
    others = chance.choice([False, False, _any(chance, 0)])
    return {
        "type": "object",
        "properties": {name: _any(chance, depth - 1) for name in names},
        "required": chance.sample("abc", 1) if others else names[:2],
        "additionalProperties": others,
    }


def _unrolled(node: Any, definitions: dict[str, Any], depth: int) -> Any:
    """Without references: what lies deeper than so many of them is not there."""
    if isinstance(node, list):
        return [_unrolled(member, definitions, depth) for member in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        if depth == 0:
            return False
        return _unrolled(definitions[node["$ref"].rpartition("/")[2]], definitions, depth - 1)
    return {key: _unrolled(value, definitions, depth) for key, value in node.items()}


def _compiles(schema: Any) -> bool:
    grammar = json.dumps({"grammars": [{"json_schema": schema}]})
    matcher = LLMatcher(TOKENIZER, grammar, log_level=0)
    if matcher.is_error():
        assert "Unsatisfiable" in matcher.get_error(), matcher.get_error()
    return not matcher.is_error()


LARGE: dict[str, Any] = {
    "a long chain": {
        "$ref": "#/$defs/d0",
        "$defs": {f"d{n}": exact({"a": {"$ref": f"#/$defs/d{n + 1}"}}) for n in range(3_000)}
        | {"d3000": {}},
    },
    "a long chain of nothing else": {
        "$ref": "#/$defs/d0",
        "$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(3_000)} | {"d3000": {}},
    },
    "many that wait for the last": exact(
        {f"p{n}": {"$ref": f"#/properties/p{n + 1}"} for n in range(3_000)} | {"p3000": {}}
    ),
    "everything refers to the whole": {
        "anyOf": [exact({f"p{n}": SELF for n in range(50)}) for _ in range(60)]
    },
    "all of all": {"allOf": [{"allOf": [SELF] * 50} for _ in range(50)]},
}


@pytest.mark.parametrize("name", LARGE)
def test_the_largest_are_not_looked_at_for_long(name: str) -> None:
    looks = Looks()

    can_end(LARGE[name], looks)

    assert looks.num_left > -100  # it stops when nothing is left
