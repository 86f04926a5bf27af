from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.file_lines import LineTooLong, read_lines

_LINE = st.binary(max_size=6).filter(lambda line: b"\n" not in line and not line.endswith(b"\r"))


@given(
    lines=st.lists(_LINE, max_size=12),
    end=st.sampled_from([b"\n", b"\r\n"]),
    chunk_bytes=st.integers(1, 9),
)
def test_lines_come_out_however_the_chunks_are_cut(
    lines: list[bytes], end: bytes, chunk_bytes: int
) -> None:
    body = b"".join(line + end for line in lines)
    chunks = [body[at : at + chunk_bytes] for at in range(0, len(body), chunk_bytes)]

    assert list(read_lines(chunks, max_bytes=6)) == lines


def test_the_last_line_needs_no_end() -> None:
    assert list(read_lines([b"a\nb", b"c"], max_bytes=2)) == [b"a", b"bc"]


@pytest.mark.parametrize("chunks", [[b"ab\nabcd\n"], [b"ab\nab", b"cd"], [b"ab\n", b"abcd\r\nx\n"]])
def test_a_line_that_is_too_long_is_named(chunks: list[bytes]) -> None:
    with pytest.raises(LineTooLong) as raised:
        list(read_lines(chunks, max_bytes=3))

    assert raised.value.number == 2


def test_a_line_without_end_is_not_kept() -> None:
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield b"x" * 100

    with pytest.raises(LineTooLong):
        list(read_lines(endless(), max_bytes=1_000))  # type: ignore[arg-type]

    assert taken == 11
