"""What a JSON schema may be, before anybody tries to compile it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from api.grammars.limits import (
    MAX_SCHEMA_DEPTH,
    MAX_SCHEMA_ENUM_VALUES,
    MAX_SCHEMA_PROPERTIES,
)
from tasks.errors import InvalidGrammar

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_BOUNDS = {
    "exclusiveMinimum": ("maximum", "exclusiveMaximum"),
    "exclusiveMaximum": ("minimum", "exclusiveMinimum"),
}
_DATA = frozenset({"const", "default", "enum", "examples"})  # their values are no schemas


def check_schema(schema: Mapping[str, Any], *, param: str) -> None:
    """Raise InvalidGrammar for a schema that is too large, refers to other documents, or can't be
    kept to.

    Nothing is fetched and nothing recursive: it goes through the schema a level at a time.
    """
    num_properties = num_enum_values = 0
    for node in _objects(schema, param=param):
        _refuse_remote(node, param=param)
        _refuse_departures(node, param=param)
        num_properties += _size(node.get("properties"))
        num_enum_values += _size(node.get("enum"))
    if num_properties > MAX_SCHEMA_PROPERTIES:
        message = f"The schema has more than {MAX_SCHEMA_PROPERTIES} properties."
        raise InvalidGrammar(message, param=param)
    if num_enum_values > MAX_SCHEMA_ENUM_VALUES:
        message = f"The schema has more than {MAX_SCHEMA_ENUM_VALUES} enum values."
        raise InvalidGrammar(message, param=param)


def _objects(schema: Mapping[str, Any], *, param: str) -> Iterator[Mapping[str, Any]]:
    """All objects in a schema, save those that are data."""
    level: list[Any] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        yield from (node for node in level if isinstance(node, Mapping))
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    if any(isinstance(node, Mapping | list) for node in level):
        message = f"The schema is nested more than {MAX_SCHEMA_DEPTH} levels deep."
        raise InvalidGrammar(message, param=param)


def _children(node: Any) -> list[Any]:
    if isinstance(node, Mapping):
        return [child for key, child in node.items() if key not in _DATA]
    return node if isinstance(node, list) else []


def _refuse_remote(node: Mapping[str, Any], *, param: str) -> None:
    for key in _REFERENCES:
        target = node.get(key)
        if isinstance(target, str) and not target.startswith("#"):
            message = f"'{key}' may refer to a place in the same schema only, as '#/$defs/...'."
            raise InvalidGrammar(message, param=param)


def _refuse_departures(node: Mapping[str, Any], *, param: str) -> None:
    """What llguidance 1.9.1 takes but doesn't keep to; tests/unit/engine pin both."""
    least = node.get("minProperties")
    if is_number(least) and least > _size(node.get("required")) + 1:
        # It counts a repeated key as another property.
        message = "'minProperties' may exceed the number of required properties by 1 at most."
        raise InvalidGrammar(message, param=param)
    for exclusive, others in _BOUNDS.items():
        bound = node.get(exclusive)
        if not is_number(bound) or bound != int(bound):
            continue
        if any(is_number(node.get(o)) and abs(node[o] - bound) < 1 for o in others):
            # It lets the excluded whole number itself through.
            message = f"A whole '{exclusive}' needs the other bound to be 1 away or more."
            raise InvalidGrammar(message, param=param)


def is_number(value: Any) -> TypeGuard[int | float]:
    """A number of JSON."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, Mapping | list) else 0
