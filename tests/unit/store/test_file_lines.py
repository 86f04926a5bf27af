"""JSONL is cut into lines a block at a time, wherever the block ends."""

from __future__ import annotations

import io

import pytest

from store.file_lines import LineTooLong, lines_of, read_block


class _Trickle(io.BytesIO):
    """Gives fewer bytes than asked for, as remote stores do."""

    def read(self, max_bytes: int | None = -1) -> bytes:
        assert max_bytes, "nothing is asked for: it would look like the end"
        return super().read(min(max_bytes, 2))


def _lines(data: bytes, block: int, max_bytes: int = 6) -> list[bytes]:
    lines: list[bytes] = []
    begin = 0
    while begin < len(data):
        piece = read_block(_Trickle(data[begin:]), max_bytes=block)
        is_last = begin + len(piece) == len(data)
        found = list(lines_of(piece, is_last=is_last, max_bytes=max_bytes))
        lines += [line for line, _ in found]
        begin += found[-1][1]
    return lines


@pytest.mark.parametrize("block", [8, 9, 10, 13, 100])
def test_lines_are_the_same_however_the_file_is_cut(block: int) -> None:
    data = b"one\r\ntwo\n\nthree\n\xff\nlonger\r\nlast"

    assert _lines(data, block) == [b"one", b"two", b"", b"three", b"\xff", b"longer", b"last"]


def test_an_end_of_the_last_line_makes_no_further_line() -> None:
    assert _lines(b"a\nb\n", 8) == [b"a", b"b"]


@pytest.mark.parametrize("data", [b"a\n1234567\n", b"a\n1234567", b"123456789" * 9])
def test_a_line_that_is_too_long_is_not_waited_for(data: bytes) -> None:
    with pytest.raises(LineTooLong):
        _lines(data, 8)
