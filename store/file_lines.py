"""Splits the contents of a file into lines with bounded memory, for JSONL of any size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class LineTooLong(Exception):
    """A line has more bytes than allowed."""

    def __init__(self, number: int) -> None:
        super().__init__(f"line {number} is too long")
        self.number = number


def read_lines(chunks: Iterable[bytes], *, max_bytes: int) -> Iterator[bytes]:
    """Lines without their ends (LF or CRLF), the last one with or without.

    Holds a line and a chunk at most. Raises LineTooLong, which counts from 1.
    """
    number, rest = 0, b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            number += 1
            yield _checked(line, number, max_bytes)
        _checked(rest, number + 1, max_bytes)  # a line without end is not waited for
    if rest:
        yield _checked(rest, number + 1, max_bytes)


def _checked(line: bytes, number: int, max_bytes: int) -> bytes:
    line = line.removesuffix(b"\r")
    if len(line) > max_bytes:
        raise LineTooLong(number)
    return line
