"""JSON schemas of many shapes, and a judge of what was written under them."""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Callable
from decimal import Context, Decimal, localcontext
from typing import Any

import jsonschema

Schema = dict[str, Any]
Builder = Callable[[random.Random, int], Schema]

_NAMES = ("a", "b", "name", "id", "x y", "größe", 'quote"d', "$ref", "0")
_FORMATS = ("date", "time", "date-time", "email", "ipv4", "ipv6", "uuid", "hostname", "duration")
_PATTERNS = (r"^[a-z]{1,4}$", r"^\d{3}-\d{2}$", r"^(yes|no)$", r"^x*y?$", r"^[A-F0-9]{2,6}$", "ab")
_SCALARS: tuple[Any, ...] = ("", "red", "ünï", 'a"\\b', "1", 0, -7, 12345678901, 2.5, True, None)


def _matches(regex: str, value: object) -> bool:
    return not isinstance(value, str) or re.fullmatch(regex, value) is not None


_FORMAT_CHECKER = jsonschema.FormatChecker()
_TIME = r"(?i:([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d))"
# What jsonschema checks only with further packages.
for _name, _regex in {
    "time": _TIME,
    "date-time": rf"\d{{4}}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])[Tt]{_TIME}",
    "duration": r"P(?=.)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?)",
    "hostname": r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9-]{1,63})*",
}.items():
    _FORMAT_CHECKER.checks(_name)(functools.partial(_matches, _regex))


def random_schema(seed: int) -> Schema:
    """Equal for equal seeds. Can be satisfied; nested up to four levels deep."""
    chance = random.Random(seed)
    if chance.random() < 0.08:
        return _recursive(chance)
    return _any(chance, depth=chance.randint(0, 3))


def faults(text: str, schema: Schema) -> list[str]:
    """Why `text` is no JSON document of the schema; empty if it is one.

    Numbers are compared as decimals: in binary 0.07 is no multiple of 0.01.
    """
    exact_schema = json.loads(json.dumps(schema), parse_float=Decimal)
    validator = jsonschema.Draft202012Validator(exact_schema, format_checker=_FORMAT_CHECKER)
    # Untrapped, a number beyond all bounds is read as NaN, which is a number and below no bound.
    with localcontext(Context(prec=2000, traps=[])):
        try:
            document = json.loads(text, parse_float=Decimal)
        except ValueError as error:
            return [str(error)]
        return [error.message for error in validator.iter_errors(document)]


def _any(chance: random.Random, depth: int) -> Schema:
    leaves: list[Builder] = [_string, _integer, _number, _enum, _const, _plain, _types]
    nodes: list[Builder] = [_array, _tuple, _object, _object, _map, _any_of, _one_of, _all_of]
    if depth == 0:
        return chance.choice(leaves)(chance, 0)
    return chance.choice(nodes)(chance, depth - 1)


def _string(chance: random.Random, _depth: int) -> Schema:
    low = chance.randint(0, 4)
    return {"type": "string"} | chance.choice(
        [
            {},
            {"minLength": low},
            {"maxLength": low},
            {"minLength": low, "maxLength": low + chance.randint(0, 9)},
            {"pattern": chance.choice(_PATTERNS)},
            {"format": chance.choice(_FORMATS)},
        ]
    )


def _integer(chance: random.Random, _depth: int) -> Schema:
    low = chance.randint(-1000, 1000)
    high = low + chance.choice([0, 1, 7, 12345])
    return {"type": "integer"} | chance.choice(
        [
            {},
            {"minimum": low},
            {"maximum": high},
            {"minimum": low, "maximum": high},
            {"exclusiveMinimum": low - 1, "exclusiveMaximum": high + 1},
            {"multipleOf": chance.choice([2, 7, 10])},
            {"minimum": 0, "maximum": 500, "multipleOf": 5},
        ]
    )


def _number(chance: random.Random, _depth: int) -> Schema:
    low = chance.choice([-3.75, 0, 0.001, 12.5])
    return {"type": "number"} | chance.choice(
        [
            {},
            {"minimum": low},
            {"exclusiveMinimum": low, "maximum": low + 1.5},
            {"minimum": low, "exclusiveMaximum": low + 100},
            {"multipleOf": 0.01, "minimum": 0, "maximum": 2},
        ]
    )


def _enum(chance: random.Random, _depth: int) -> Schema:
    return {"enum": chance.sample(_SCALARS, chance.randint(1, 5))}


def _const(chance: random.Random, _depth: int) -> Schema:
    value = chance.choice(_SCALARS)
    return {"const": chance.choice([value, [value, 1], {"k": value}, [], {}])}


def _plain(chance: random.Random, _depth: int) -> Schema:
    return {"type": chance.choice(["boolean", "null", "object", "array"])}


def _types(chance: random.Random, _depth: int) -> Schema:
    return {"type": chance.sample(["string", "integer", "boolean", "null", "number"], 2)}


def _array(chance: random.Random, depth: int) -> Schema:
    low = chance.randint(0, 3)
    limits = [{"minItems": low, "maxItems": low + chance.randint(0, 3)}, {"maxItems": 2}, {}]
    return {"type": "array", "items": _any(chance, depth)} | chance.choice(limits)


def _tuple(chance: random.Random, depth: int) -> Schema:
    prefix = [_any(chance, depth) for _ in range(chance.randint(1, 3))]
    rest = chance.choice([False, {"type": "boolean"}])
    size = {"minItems": len(prefix), "maxItems": len(prefix) + 2}
    return {"type": "array", "prefixItems": prefix, "items": rest} | size


def _object(chance: random.Random, depth: int) -> Schema:
    names = chance.sample(_NAMES, chance.randint(0, 4))
    schema: Schema = {
        "type": "object",
        "properties": {name: _any(chance, depth) for name in names},
        "required": chance.sample(names, chance.randint(0, len(names))),
    }
    more: list[Schema] = [
        {},
        {"additionalProperties": False},
        {"additionalProperties": {"type": "integer"}},
    ]
    return schema | chance.choice(more)


def _map(chance: random.Random, depth: int) -> Schema:
    values = _any(chance, depth)
    if chance.random() < 0.5:
        return {"type": "object", "additionalProperties": values, "maxProperties": 3}
    patterns = {r"^s_[a-z]+$": values, r"^n_\d$": {"type": "null"}}
    return {"type": "object", "patternProperties": patterns, "additionalProperties": False}


def _any_of(chance: random.Random, depth: int) -> Schema:
    return {"anyOf": [_any(chance, depth) for _ in range(chance.randint(1, 3))]}


def _one_of(chance: random.Random, depth: int) -> Schema:
    def variant(kind: str) -> Schema:
        properties = {"kind": {"const": kind}, "value": _any(chance, depth)}
        return {"type": "object", "properties": properties, "required": ["kind"]}

    by_type: list[Schema] = [{"type": "string"}, {"type": "null"}, variant("x")]
    return {"oneOf": chance.choice([by_type, [variant("x"), variant("y")]])}


def _all_of(chance: random.Random, depth: int) -> Schema:
    def part(name: str) -> Schema:
        return {"type": "object", "properties": {name: _any(chance, depth)}, "required": [name]}

    ranges: list[Schema] = [{"type": "integer", "minimum": -5}, {"maximum": chance.randint(-5, 50)}]
    return {"allOf": chance.choice([ranges, [part("left"), part("right")]])}


def _recursive(chance: random.Random) -> Schema:
    """References are resolved from the root, so this is never a part of another schema."""
    home = chance.choice(["$defs", "definitions"])
    link = {"$ref": f"#/{home}/node"}
    properties = {"value": _any(chance, 0), "next": {"anyOf": [{"type": "null"}, link]}}
    node = {"type": "object", "properties": properties, "required": ["value", "next"]}
    return {**link, home: {"node": node}}
