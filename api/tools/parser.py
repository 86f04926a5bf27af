"""Finds tool calls in a model's text as it comes. Pure: the same text gives the same pieces,
however it is cut.

Between the marks stands one object. Its arguments are passed on as they come once it has begun with
the name and they have begun; an object written in another order is passed on when it is complete.
What isn't a call after all comes out as the text it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from api.tools.formats import ToolFormat


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A call of a function; calls of one answer count from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments, which add up to JSON."""

    index: int
    text: str


Piece = TextPiece | CallBegin | CallArguments

_STRING = r'"(?:[^"\\]|\\.)*"'
_WHITESPACE = " \t\r\n"


class ToolCallParser:
    """The text of one choice. Feed it in pieces, then end it once."""

    def __init__(self, format_: ToolFormat) -> None:
        self._format = format_
        self._head = re.compile(
            rf'\s*\{{\s*"name"\s*:\s*({_STRING})\s*,\s*"{format_.arguments_key}"\s*:\s*'
        )
        self._pending = ""  # text whose meaning is open
        self._num_calls = 0
        self._is_in_call = not format_.begin  # without marks the first character decides
        self._is_behind_call = False  # with nothing but white space since
        self._arguments: _JsonValue | None = None  # being passed on

    def feed(self, text: str) -> list[Piece]:
        """What this text settles."""
        self._pending += text
        return list(self._settle(is_last=False))

    def end(self) -> list[Piece]:
        """What the end of the text settles."""
        return list(self._settle(is_last=True))

    def _settle(self, *, is_last: bool) -> Iterator[Piece]:
        while True:
            before = (self._pending, self._is_in_call, self._arguments)
            if not self._is_in_call:
                yield from self._text(is_last=is_last)
            elif self._arguments is None:
                yield from self._head_of_call(is_last=is_last)
            else:
                yield from self._rest_of_call(self._arguments, is_last=is_last)
            if before == (self._pending, self._is_in_call, self._arguments):
                return

    def _text(self, *, is_last: bool) -> Iterator[Piece]:
        """Up to the mark that begins a call; a tail that may be half of the mark waits."""
        begin = self._format.begin
        if not begin and self._num_calls:  # what closes the one call
            self._pending = ""
        found = self._pending.find(begin) if begin else -1
        if found >= 0:
            text, self._pending = self._pending[:found], self._pending[found + len(begin) :]
            self._is_in_call = True
        else:
            kept = 0 if is_last or not begin else _overlap(self._pending, begin)
            cut = len(self._pending) - kept
            text, self._pending = self._pending[:cut], self._pending[cut:]
        if self._is_behind_call and not text.strip():
            # Between calls models write line breaks, which are part of the format.
            if not self._is_in_call and not is_last:
                self._pending = text + self._pending
            return
        self._is_behind_call = False
        if text:
            yield TextPiece(text)

    def _head_of_call(self, *, is_last: bool) -> Iterator[Piece]:
        if not self._format.begin and not self._may_be_call(is_last=is_last):
            self._is_in_call = False
            return
        head = self._head.match(self._pending)
        if head is not None and (head.end() < len(self._pending) or is_last):
            yield CallBegin(self._num_calls, orjson.loads(head[1]))
            self._pending = self._pending[head.end() :]
            self._arguments = _JsonValue()
            return
        yield from self._whole_call(is_last=is_last)

    def _may_be_call(self, *, is_last: bool) -> bool:
        """Without marks only an object that names a function first is a call."""
        text = self._pending.lstrip(_WHITESPACE)
        start = '{"name"'
        squeezed = re.sub(r"\s", "", text[:64])
        return not self._num_calls and (
            squeezed.startswith(start) or (not is_last and start.startswith(squeezed))
        )

    def _whole_call(self, *, is_last: bool) -> Iterator[Piece]:
        """An object in another order: wait for its end, then take it apart."""
        end = self._format.end
        found = self._pending.find(end) if end else -1
        if found < 0 and not is_last:
            return
        body = self._pending if found < 0 else self._pending[:found]
        self._pending = "" if found < 0 else self._pending[found + len(end) :]
        self._is_in_call = False
        call = _parse_call(body, self._format.arguments_key)
        if call is None:
            yield TextPiece(self._format.begin + body + (end if found >= 0 else ""))
            return
        yield CallBegin(self._num_calls, call[0])
        yield CallArguments(self._num_calls, call[1])
        self._end_call()

    def _rest_of_call(self, arguments: _JsonValue, *, is_last: bool) -> Iterator[Piece]:
        taken = arguments.take(self._pending)
        if taken:
            yield CallArguments(self._num_calls, self._pending[:taken])
            self._pending = self._pending[taken:]
        if arguments.is_complete:
            end = self._format.end
            found = self._pending.find(end) if end else 0
            if found < 0 and not is_last:
                return  # the closing brace, and the mark that is to come
            self._pending = self._pending[found + len(end) :] if end and found >= 0 else ""
        elif not is_last:
            return
        self._end_call()

    def _end_call(self) -> None:
        self._num_calls += 1
        self._arguments = None
        self._is_in_call = False
        self._is_behind_call = True


class _JsonValue:
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
            elif character in "}]":
                if self._depth == 0:  # of the object around it: the value was a bare word
                    self.is_complete = True
                    return position
                self._depth -= 1
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


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of the text that begins the mark."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0


def _parse_call(body: str, arguments_key: str) -> tuple[str, str] | None:
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(document, dict) or not isinstance(document.get("name"), str):
        return None
    arguments = document.get(arguments_key, {})
    if isinstance(arguments, str):  # some models write the arguments as text of JSON
        return document["name"], arguments
    return document["name"], json.dumps(arguments, ensure_ascii=False)
