"""JSON of which a part is read while it is sent: log-probabilities can be tens of MB."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

# Token ids and log-probabilities of consecutive tokens, as results hold them.
Tokens = tuple[Sequence[int], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class LaterList:
    """A list in a document, made of what a result holds of the tokens of a choice."""

    choice: int
    entries: Callable[[Sequence[int], Sequence[Any]], Sequence[Any]]


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

    def __init__(self, later: LaterList) -> None:
        self._later = later
        self._opening = b"["

    def add(self, token_ids: Sequence[int], values: Sequence[Any]) -> bytes:
        """What these tokens add to it; nothing, perhaps."""
        entries = self._later.entries(token_ids, values)
        if not entries:
            return b""
        opening, self._opening = self._opening, b","
        return opening + orjson.dumps(entries)[1:-1]

    def end(self) -> bytes:
        """Its last bytes."""
        return b"[]" if self._opening == b"[" else b"]"


async def list_bytes(later: LaterList, tokens: AsyncIterator[Tokens]) -> AsyncGenerator[bytes]:
    """All of it."""
    json = ListJson(later)
    async for token_ids, values in tokens:
        if data := json.add(token_ids, values):
            yield data
    yield json.end()
