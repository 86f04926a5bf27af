"""Splits the contents of a file into lines with bounded memory, a block at a time, for JSONL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class LineTooLong(Exception):
    """A line has more bytes than allowed."""


class Readable(Protocol):
    """Contents that are read in pieces."""

    def read(self, max_bytes: int) -> bytes:
        """At most so many bytes, none at the end."""


def read_block(reader: Readable, *, max_bytes: int) -> bytes:
    """So many bytes, fewer only at the end of the file."""
    pieces, num_left = [], max_bytes
    while num_left and (piece := reader.read(num_left)):
        pieces.append(piece)
        num_left -= len(piece)
    return b"".join(pieces)


def lines_of(block: bytes, *, is_last: bool, max_bytes: int) -> Iterator[tuple[bytes, int]]:
    """The whole lines of a block without their ends (LF or CRLF), and where in it each ends.

    What follows the last end is a line if the block is the file's last, else of the next block;
    a block is longer than a line may be. Raises LineTooLong.
    """
    begin = 0
    while (end := block.find(b"\n", begin)) >= 0:
        yield _checked(block[begin:end], max_bytes), end + 1
        begin = end + 1
    if begin < len(block) and (is_last or begin == 0):
        yield _checked(block[begin:], max_bytes), len(block)


def _checked(line: bytes, max_bytes: int) -> bytes:
    line = line.removesuffix(b"\r")
    if len(line) > max_bytes:
        raise LineTooLong
    return line
