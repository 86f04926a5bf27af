"""What stands between the marks of a call: one JSON object, whole or cut."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

STRING = r'"(?:[^"\\]|\\.)*"'
_MEMBER = re.compile(rf"\s*,?\s*({STRING})\s*:\s*", re.DOTALL)


class JsonValue:
    """Finds the end of one JSON value, character by character."""

    def __init__(self) -> None:
        self.is_complete = False
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    def take(self, text: str) -> int:
        """How many characters of the text belong to the value."""
        if self.is_complete:
            return 0
        for position, character in enumerate(text):
            if self._in_string:
                self._string(character)
            elif character in "{[":
                self._depth += 1
            elif character in "}],":
                if self._depth == 0:  # of the object around it: the value was a bare word
                    self.is_complete = True
                    return position
                self._depth -= int(character != ",")
            elif character == '"':
                self._in_string = True
            if self._depth == 0 and not self._in_string and character in '}]"':
                self.is_complete = True
                return position + 1
        return len(text)

    def _string(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._in_string = False


def parse_name(text: str) -> str | None:
    """A function's name of its JSON; None for what is no text after all."""
    try:
        name = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return name if isinstance(name, str) else None


def parse_call(body: str, arguments_key: str, *, needs_arguments: bool) -> tuple[str, str] | None:
    """The name and the arguments of a whole object; None for another one."""
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(document, dict) or not isinstance(document.get("name"), str):
        return None
    if needs_arguments and arguments_key not in document:
        return None
    arguments = document.get(arguments_key, {})
    if isinstance(arguments, str):  # some models write the arguments as text of JSON
        return document["name"], arguments
    return document["name"], json.dumps(arguments, ensure_ascii=False)


def begun_call(body: str, arguments_key: str, *, is_exact: bool) -> tuple[str, str] | None:
    """The name, and the arguments so far, of an object that was cut; None before its name is whole.

    With `is_exact` what stands behind the name has to be the arguments, too.
    """
    members, rest = _members(body)
    name = parse_name(members.get("name", ""))
    if name is None:
        return None
    expected = f',"{arguments_key}":'
    is_other = arguments_key not in members and not expected.startswith(re.sub(r"\s", "", rest))
    if is_exact and (is_other or members.keys() - {"name", arguments_key}):
        return None
    return name, members.get(arguments_key, "")


def _members(body: str) -> tuple[dict[str, str], str]:
    """The members of an object in JSON, the last perhaps cut, and what stands behind them."""
    members: dict[str, str] = {}
    rest = body.lstrip().removeprefix("{")
    while (key := _MEMBER.match(rest)) is not None:
        value = JsonValue()
        rest = rest[key.end() :]
        length = value.take(rest)
        members[parse_name(key[1]) or ""] = rest[:length]
        rest = rest[length:]
        if not value.is_complete:
            break
    return members, rest
