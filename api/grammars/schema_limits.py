"""What a JSON schema may be, before anybody tries to compile it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from api.grammars.limits import (
    MAX_SCHEMA_DEPTH,
    MAX_SCHEMA_ENUM_VALUES,
    MAX_SCHEMA_PROPERTIES,
)
from tasks.errors import InvalidGrammar

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_DATA = frozenset({"const", "default", "enum", "examples"})  # their values are no schemas


def check_schema(schema: Mapping[str, Any], *, param: str) -> None:
    """Raise InvalidGrammar for a schema that is too large or refers to other documents.

    Nothing is fetched and nothing recursive: it goes through the schema a level at a time.
    """
    num_properties = num_enum_values = 0
    for node in _objects(schema, param=param):
        _refuse_remote(node, param=param)
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


def _size(value: Any) -> int:
    return len(value) if isinstance(value, Mapping | list) else 0
