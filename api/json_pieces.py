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


async def list_bytes(later: LaterList, tokens: AsyncIterator[Tokens]) -> AsyncGenerator[bytes]:
    """The JSON of a list, bit by bit."""
    opening = b"["
    async for token_ids, values in tokens:
        if entries := later.entries(token_ids, values):
            yield opening + orjson.dumps(entries)[1:-1]
            opening = b","
    yield b"[]" if opening == b"[" else b"]"
