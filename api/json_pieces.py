"""JSON of which a part is read while it is sent: log-probabilities can be tens of MB."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import orjson

# Token ids and log-probabilities of consecutive tokens, as results hold them.
Tokens = tuple[Sequence[int], Sequence[Any]]


# What consecutive tokens add to a list; told all of them in order.
Entries = Callable[[Sequence[int], Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class ListPart:
    """Entries of a list, made of what a result holds of the tokens of a choice."""

    choice: int
    entries: Callable[[], Entries]  # called anew whenever the list is read
    is_prompt: bool = False  # of the tokens of its prompt, which the choice alone holds


@dataclass(frozen=True, slots=True)
class LaterList:
    """A list in a document, in parts that are read while it is sent."""

    parts: tuple[ListPart, ...]


Piece = bytes | LaterList


def pieces_of(document: Any) -> list[Piece]:
    """A document as JSON: bytes, and between them the lists that are to be read."""
    lists: list[LaterList] = []
    mark = ""

    def note(value: Any) -> str:
        nonlocal mark
        if not isinstance(value, LaterList):
            raise TypeError
        lists.append(value)
        mark = mark or secrets.token_hex(16)  # no text of a client's can hold it
        return mark

    data = orjson.dumps(document, default=note, option=orjson.OPT_PASSTHROUGH_DATACLASS)
    if not lists:
        return [data]
    first, *others = data.split(f'"{mark}"'.encode())
    pieces: list[Piece] = [first]
    for later, behind in zip(lists, others, strict=True):
        pieces += [later, behind]
    return pieces


class ListJson:
    """The JSON of a list, bit by bit."""

    def __init__(self) -> None:
        self._opening = b"["

    def add(self, entries: Sequence[Any]) -> bytes:
        """What more entries add to it; nothing, perhaps."""
        if not entries:
            return b""
        opening, self._opening = self._opening, b","
        return opening + orjson.dumps(entries)[1:-1]

    def end(self) -> bytes:
        """Its last bytes."""
        return b"[]" if self._opening == b"[" else b"]"


async def list_bytes(
    later: LaterList, read: Callable[[ListPart], AsyncGenerator[Tokens]]
) -> AsyncGenerator[bytes]:
    """All of it. `read` gives the tokens of a part."""
    json = ListJson()
    for part in later.parts:
        entries = part.entries()
        async with aclosing(read(part)) as tokens:
            async for token_ids, values in tokens:
                if data := json.add(entries(token_ids, values)):
                    yield data
    yield json.end()
