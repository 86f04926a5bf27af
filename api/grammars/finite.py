"""Finds JSON schemas that no finite text satisfies: `{"a": {"$ref": "#"}}` with `a` required.

A part of a schema can end if what it needs can: a least fixed point, found from the parts that need
no others. llguidance sees contradictions, but not that a recursion has no end. Everything here errs
on one side: a schema that some text satisfies is never refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import orjson

from api.grammars.schema_limits import is_number

Part = Mapping[str, Any]

# Looks at parts of the schemas of one request; what takes more is not judged. Ordinary schemas take
# some for each of their parts.
MAX_LOOKS = 10_000
# Parts that hold for the same value, and that are looked at together.
MAX_TOGETHER = 8

_TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
_CHOICES = ("anyOf", "oneOf")
_OF_NAMES = ("properties", "patternProperties")
_LISTS = ("prefixItems", "items", "allOf", *_CHOICES)
_SINGLE = ("items", "additionalItems", "additionalProperties")


class Looks:
    """How much may still be looked at for one request."""

    def __init__(self) -> None:
        self.num_left = MAX_LOOKS


def can_end(schema: Part, looks: Looks) -> bool:
    """Whether some finite text satisfies a schema, as far as that can be told."""
    if b'"$ref"' not in orjson.dumps(schema):
        return True  # what else can be wrong sees llguidance
    try:
        return _Search(schema, looks).can_end()
    except _TooMuch:
        return True


class _TooMuch(Exception):
    """Nothing is left to look at."""


class _Search:
    """Over one schema. Without recursion in the code, however deep the schema's references go."""

    def __init__(self, root: Part, looks: Looks) -> None:
        self._root = root
        self._looks = looks
        self._good: set[int] = set()  # ids of parts that can end
        self._missing: list[int] = []  # what kept the part at hand from being good
        self._dependents: dict[int, list[Part]] = {}

    def can_end(self) -> bool:
        """Whether something satisfies the whole, as far as that can be told."""
        queue = deque(self._innermost_first())
        while queue:
            part = queue.popleft()
            if id(part) in self._good:
                continue
            self._missing.clear()
            if self._is_good(part):
                self._good.add(id(part))
                queue.extend(self._dependents.pop(id(part), ()))
            else:
                for missing in self._missing:
                    self._dependents.setdefault(missing, []).append(part)
        return id(self._root) in self._good

    def _innermost_first(self) -> Iterator[Part]:
        """Every part that the schema can come to, before those that it is a part of."""
        seen = {id(self._root)}
        stack = [(self._root, self._children(self._root))]
        while stack:
            part, children = stack[-1]
            child = next(children, None)
            if child is None:
                stack.pop()
                yield part
            elif id(child) not in seen:
                self._spend(1)
                seen.add(id(child))
                stack.append((child, self._children(child)))

    def _children(self, part: Part) -> Iterator[Part]:
        for key in _OF_NAMES:
            yield from _parts(_mapping(part, key).values())
        for key in _LISTS:
            yield from _parts(_list(part, key))
        yield from _parts(part.get(key) for key in _SINGLE)
        yield from _parts([self._target(part)])

    def _can_end(self, schema: Any) -> bool:
        """What is known of a part by now; what is no schema is for others to refuse."""
        self._spend(1)
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping) or id(schema) in self._good:
            return True
        self._missing.append(id(schema))
        return False

    def _spend(self, num: int) -> None:
        self._looks.num_left -= num
        if self._looks.num_left < 0:
            raise _TooMuch

    def _is_good(self, part: Part) -> bool:
        together = self._together(part)
        needed = [*_list(part, "allOf"), self._target(part)]
        return (
            all(self._can_end(other) for other in needed)
            and self._has_value(together)
            and all(
                any(self._is_open(branch, together) for branch in one[key])
                for one in together
                for key in _CHOICES
                if isinstance(one.get(key), list)
            )
        )

    def _is_open(self, branch: Any, together: list[Part]) -> bool:
        """Whether an alternative can be taken beside what else holds."""
        if not self._can_end(branch):
            return False
        return not isinstance(branch, Mapping) or self._has_value(
            [*together, *self._together(branch)]
        )

    def _together(self, part: Part) -> list[Part]:
        """What holds for the same value as a part: itself, what it refers to, and its `allOf`."""
        if "$ref" not in part and "allOf" not in part:
            return [part]
        found = [part]
        seen = {id(part)}
        for one in found:
            for other in _parts([self._target(one), *_list(one, "allOf")]):
                if id(other) not in seen and len(found) < MAX_TOGETHER:
                    seen.add(id(other))
                    found.append(other)
        self._spend(len(found))
        return found

    def _target(self, part: Part) -> Any:
        """What `$ref` points to; True where that is nothing, or not told by a path."""
        reference = part.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#"):
            return True
        path = unquote(reference[1:])
        if path and not path.startswith("/"):
            return True
        node: Any = self._root
        for step in path.split("/")[1:]:
            self._spend(1)
            node = _inside(node, step.replace("~1", "/").replace("~0", "~"))
        return node

    def _has_value(self, together: list[Part]) -> bool:
        """Whether there is a value of some type for which all of these hold."""
        types = _TYPES.intersection(*(_types(part) for part in together))
        if any("enum" in part or "const" in part for part in together):
            return bool(types)  # whether it fits sees llguidance
        return any(_HAS_VALUE[type_](self, together) for type_ in types)

    def _has_object(self, together: list[Part]) -> bool:
        asked = (name for part in together for name in _list(part, "required"))
        names = {name for name in asked if isinstance(name, str)}
        if len(names) > _least(together, "maxProperties"):
            return False
        return all(self._may_have(part, name) for name in names for part in together) and all(
            self._has_room(part) for part in together
        )

    def _may_have(self, part: Part, name: str) -> bool:
        """Whether a property may be there."""
        properties = _mapping(part, "properties")
        return self._can_end(properties[name]) if name in properties else self._has_others(part)

    def _has_others(self, part: Part) -> bool:
        """Whether there may be properties that the part doesn't name."""
        patterns = _mapping(part, "patternProperties").values()
        return self._can_end(part.get("additionalProperties", True)) or any(
            self._can_end(schema) for schema in patterns
        )

    def _has_room(self, part: Part) -> bool:
        least = _most([part], "minProperties")
        if least <= 0 or self._has_others(part):
            return True
        named = _mapping(part, "properties").values()
        return least <= sum(self._can_end(schema) for schema in named)

    def _has_array(self, together: list[Part]) -> bool:
        least = max(0, _most(together, "minItems"))
        if least > _least(together, "maxItems"):
            return False
        return all(self._has_items(part, least) for part in together)

    def _has_items(self, part: Part, num: float) -> bool:
        """Whether an array may have so many items."""
        key = "prefixItems" if "prefixItems" in part else "items"
        first = _list(part, key)
        rest = part.get("additionalItems" if key == "items" and first else "items", True)
        needed = [*first, rest] if num > len(first) else first[: int(num)]
        return all(self._can_end(schema) for schema in needed)

    def _has_string(self, together: list[Part]) -> bool:
        return _most(together, "minLength") <= _least(together, "maxLength")

    def _has_number(self, together: list[Part]) -> bool:
        return _most(together, "minimum") <= _least(together, "maximum")

    def _has_other(self, together: list[Part]) -> bool:
        return True


_HAS_VALUE: dict[str, Callable[[_Search, list[Part]], bool]] = {
    "null": _Search._has_other,
    "boolean": _Search._has_other,
    "integer": _Search._has_number,
    "number": _Search._has_number,
    "string": _Search._has_string,
    "array": _Search._has_array,
    "object": _Search._has_object,
}


def _parts(schemas: Any) -> Iterator[Part]:
    return (schema for schema in schemas if isinstance(schema, Mapping))


def _mapping(part: Part, key: str) -> Part:
    value = part.get(key)
    return value if isinstance(value, Mapping) else {}


def _list(part: Part, key: str) -> Sequence[Any]:
    value = part.get(key)
    return value if isinstance(value, list) else ()


def _inside(node: Any, step: str) -> Any:
    if isinstance(node, Mapping):
        return node.get(step, True)
    is_index = isinstance(node, list) and step.isdecimal() and len(step) < 6
    return node[int(step)] if is_index and int(step) < len(node) else True


def _types(part: Part) -> frozenset[str]:
    """The types that a value may have; all where that can't be told."""
    asked = part.get("type", list(_TYPES))
    names = {asked} if isinstance(asked, str) else asked
    if isinstance(names, list):
        names = {name for name in names if isinstance(name, str)}
    if not isinstance(names, set) or not names <= _TYPES:
        return _TYPES
    return frozenset(names | ({"integer"} if "number" in names else set()))


def _most(together: list[Part], key: str) -> float:
    """The strictest of lower bounds."""
    return max((part[key] for part in together if is_number(part.get(key))), default=float("-inf"))


def _least(together: list[Part], key: str) -> float:
    """The strictest of upper bounds."""
    return min((part[key] for part in together if is_number(part.get(key))), default=float("inf"))
