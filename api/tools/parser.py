"""Finds tool calls in a model's text as it comes. Pure: the same text gives the same pieces,
however it is cut.

Between the marks stands one object. Its arguments are passed on as they come once it has begun with
the name and they have begun; an object written in another order is passed on when it is complete.
Marks are never text, nor is what was cut inside a call: its name and the arguments so far are
passed on once the name is whole. What stands between marks and isn't a call is the text it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from api.tools.call_text import STRING, JsonValue, begun_call, parse_call, parse_name
from api.tools.formats import ToolFormat


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Text for the user, and where in the model's text it begins, in characters."""

    text: str
    at: int = 0


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


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The arguments are whole. A call that was cut has no end."""

    index: int


Piece = TextPiece | CallBegin | CallArguments | CallEnd

_WHITESPACE = " \t\r\n"
_UNMARKED_BEGIN = '{"name"'
# So much of a mark is one where a text was cut behind it: `<` and `<t` begin much else.
_HALF_MARK = 3


class ToolCallParser:
    """The text of one choice. Feed it in pieces, then end it once."""

    def __init__(self, format_: ToolFormat) -> None:
        self.num_settled = 0  # characters of the text whose meaning is known
        self.is_cut_in_call = False  # the text ended inside of a call
        self._format = format_
        self._head = re.compile(
            rf'\s*\{{\s*"name"\s*:\s*({STRING})\s*,\s*"{format_.arguments_key}"\s*:\s*', re.DOTALL
        )
        self._pending = ""  # text whose meaning is open
        self._num_calls = 0
        self._is_in_call = not format_.begin  # without marks the first character decides
        self._may_begin = True  # nothing but white space at the beginning, or behind a call
        self._arguments: JsonValue | None = None  # being passed on

    def feed(self, text: str) -> list[Piece]:
        """What this text settles."""
        self._pending += text
        return list(self._settle(is_last=False))

    def end(self, *, is_cut: bool) -> list[Piece]:
        """What the end of the text settles. `is_cut`: the model had not come to an end, so that
        half a mark at the end is one.
        """
        pieces = list(self._settle(is_last=True, is_cut=is_cut))
        self._take(len(self._pending))
        return pieces

    def _settle(self, *, is_last: bool, is_cut: bool = False) -> Iterator[Piece]:
        while True:
            before = (self._pending, self._is_in_call, self._arguments)
            if not self._is_in_call:
                yield from self._text(is_last=is_last, is_cut=is_cut)
            elif self._arguments is None:
                yield from self._head_of_call(is_last=is_last, is_cut=is_cut)
            else:
                yield from self._rest_of_call(self._arguments, is_last=is_last)
            if before == (self._pending, self._is_in_call, self._arguments):
                return

    def _take(self, length: int) -> str:
        taken, self._pending = self._pending[:length], self._pending[length:]
        self.num_settled += length
        return taken

    def _text(self, *, is_last: bool, is_cut: bool) -> Iterator[Piece]:
        """Up to the next mark; a tail that may be half of one waits."""
        begin, end = self._format.begin, self._format.end
        if not begin and self._num_calls:  # what closes the one call
            self._take(len(self._pending))
        found, mark = _first(self._pending, begin, end)
        half = 0 if mark else max(_overlap(self._pending, begin), _overlap(self._pending, end))
        if is_last and not (is_cut and self._is_mark(half)):
            half = 0
        length = found if mark else len(self._pending) - half
        if self._may_begin and self._num_calls and not self._pending[:length].strip():
            # Between calls models write line breaks, which are part of the format.
            if not mark and not is_last:
                return
            self._take(length)
        elif length:
            at = self.num_settled
            text = self._take(length)
            self._may_begin = self._may_begin and not text.strip()
            yield TextPiece(text, at)
        if mark:
            self._is_in_call = self._take(len(mark)) == begin  # else one that ends nothing
        elif is_last and half:
            self.is_cut_in_call = begin.startswith(self._take(half))

    def _is_mark(self, half: int) -> bool:
        """Whether the beginning of a mark is taken for one where the text was cut."""
        is_alone = self._may_begin and not self._pending[: len(self._pending) - half].strip()
        return is_alone or half >= _HALF_MARK

    def _head_of_call(self, *, is_last: bool, is_cut: bool) -> Iterator[Piece]:
        if not self._format.begin and not self._may_be_call(is_open=not is_last or is_cut):
            self._is_in_call = False
            return
        head = self._head.match(self._pending)
        name = parse_name(head[1]) if head else None
        if head is None or name is None:
            yield from self._whole_call(is_last=is_last)
        elif head.end() < len(self._pending):
            self._take(head.end())
            yield CallBegin(self._num_calls, name)
            self._arguments = JsonValue()
        elif is_last:
            yield from self._cut_call(self._take(len(self._pending)))

    def _may_be_call(self, *, is_open: bool) -> bool:
        """Without marks only an object that names a function first is a call."""
        text = self._pending.lstrip(_WHITESPACE)
        squeezed = re.sub(r"\s", "", text[:64])
        return not self._num_calls and (
            squeezed.startswith(_UNMARKED_BEGIN)
            or (is_open and _UNMARKED_BEGIN.startswith(squeezed))
        )

    def _whole_call(self, *, is_last: bool) -> Iterator[Piece]:
        """An object in another order: wait for its end, then take it apart."""
        begin, end, key = self._format.begin, self._format.end, self._format.arguments_key
        found = self._pending.find(end) if end else -1
        if found < 0 and not is_last:
            return
        at = self.num_settled
        body = self._take(found if found >= 0 else len(self._pending))
        call = parse_call(body, key, needs_arguments=not begin)
        if call is not None:
            yield CallBegin(self._num_calls, call[0])
            yield CallArguments(self._num_calls, call[1])
            yield from self._end_call()
        elif found < 0:
            yield from self._cut_call(body)
        else:
            yield from self._no_call(body, at)
        if found >= 0:
            self._take(len(end))

    def _cut_call(self, body: str) -> Iterator[Piece]:
        """What is known of a call at the end of the text, which came before the call's."""
        at = self.num_settled - len(body)
        is_marked = bool(self._format.begin)
        call = begun_call(body, self._format.arguments_key, is_exact=not is_marked)
        if call is not None:
            yield CallBegin(self._num_calls, call[0])
            if call[1]:
                yield CallArguments(self._num_calls, call[1])
        elif not self._is_beginning(body):
            yield from self._no_call(body, at)
            return
        self.is_cut_in_call = True
        self._is_in_call = False

    def _is_beginning(self, body: str) -> bool:
        """Whether more might have made a call of this."""
        text = body.lstrip(_WHITESPACE)
        if self._format.begin:
            return not text or text[0] == "{"
        squeezed = re.sub(r"\s", "", text)
        return (
            _UNMARKED_BEGIN.startswith(squeezed)
            or re.fullmatch(
                rf'{re.escape(_UNMARKED_BEGIN)}:?("([^"\\]|\\.)*\\?)?', squeezed, re.DOTALL
            )
            is not None
        )

    def _no_call(self, body: str, at: int) -> Iterator[Piece]:
        self._is_in_call = False
        if body.strip():
            self._may_begin = False
            yield TextPiece(body, at)

    def _rest_of_call(self, arguments: JsonValue, *, is_last: bool) -> Iterator[Piece]:
        if taken := arguments.take(self._pending):
            yield CallArguments(self._num_calls, self._take(taken))
        if not arguments.is_complete:
            if is_last:
                self.is_cut_in_call = True
                self._is_in_call, self._arguments = False, None
            return
        begin, end = self._format.begin, self._format.end
        found, mark = _first(self._pending, begin, end)
        if end and not mark and not is_last:
            return  # the closing brace, and the mark that is to come
        if mark and mark == begin:  # of the next call: the one at hand has lost its end
            self._take(found)
        else:
            self._take(found + len(end) if mark else len(self._pending))
        yield from self._end_call()

    def _end_call(self) -> Iterator[Piece]:
        yield CallEnd(self._num_calls)
        self._num_calls += 1
        self._arguments = None
        self._is_in_call = False
        self._may_begin = True


def _first(text: str, *marks: str) -> tuple[int, str]:
    """Where the first of some marks stands in a text, and which; an empty one for none."""
    found = [(at, mark) for mark in marks if mark and (at := text.find(mark)) >= 0]
    return min(found, default=(-1, ""))


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of the text that begins the mark."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0
