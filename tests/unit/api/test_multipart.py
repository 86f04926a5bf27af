"""However a form is cut into chunks, the same pieces come out, and garbage is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.files.multipart import Field, FileBegin, FormParser
from tasks.errors import InvalidRequest

BOUNDARY = b"xyz"
CONTENT_TYPE = "multipart/form-data; boundary=xyz"

# Bytes that look like the parts of a boundary, to be taken for what they are.
_CONTENTS = st.lists(
    st.sampled_from([b"\r", b"\n", b"-", b"--", b"xyz", b"\r\n--xy", b"{}", b"\0", b"\xff"]),
    max_size=30,
).map(b"".join)


def _form(content: bytes) -> bytes:
    return (
        b'--xyz\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n--xyz--\r\n"
    )


def _parse(body: bytes, cuts: list[int]) -> tuple[list[Field | FileBegin], bytes]:
    """(fields and beginnings, contents of the file)."""
    parser = FormParser(CONTENT_TYPE)
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    pieces = [piece for start, end in pairwise(places) for piece in parser.feed(body[start:end])]
    parser.finish()
    named = [piece for piece in pieces if not isinstance(piece, bytes)]
    return named, b"".join(piece for piece in pieces if isinstance(piece, bytes))


@given(content=_CONTENTS, cuts=st.lists(st.integers(0, 400), max_size=20))
def test_chunks_make_no_difference(content: bytes, cuts: list[int]) -> None:
    if b"\r\n--xyz" in content:
        return

    named, found = _parse(_form(content), cuts)

    assert named == [Field("purpose", "batch"), FileBegin("in.jsonl")]
    assert found == content


@given(body=st.binary(max_size=300), cut=st.integers(0, 300))
def test_garbage_is_refused(body: bytes, cut: int) -> None:
    with pytest.raises(InvalidRequest):
        _parse(b"--xyz\r\n" + body, [cut])


def test_bytes_of_a_file_are_handed_on_as_they_come() -> None:
    parser = FormParser(CONTENT_TYPE)
    parser.feed(_form(b"")[: -len(b"\r\n--xyz--\r\n")])

    pieces = [parser.feed(b"x" * 65_536) for _ in range(3)]

    assert pieces == [[b"x" * 65_536]] * 3
