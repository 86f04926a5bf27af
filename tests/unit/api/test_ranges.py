"""Which bytes of a file a request asks for."""

from __future__ import annotations

import pytest

from api.files.ranges import ByteRange, wanted
from store.files import Parts
from tasks.errors import RangeNotSatisfiable

TOTAL = 10
WHOLE = ByteRange(0, TOTAL, TOTAL, is_partial=False)


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-", 0, 10),
        ("bytes=4-", 4, 10),
        ("bytes=0-0", 0, 1),
        ("bytes=4-6", 4, 7),
        ("bytes=4-99", 4, 10),
        ("bytes=9-9999999999999999999", 9, 10),
        ("bytes=-3", 7, 10),
        ("bytes=-99", 0, 10),
        (" Bytes=4- ", 4, 10),
    ],
)
def test_one_range_is_cut_to_what_is_there(header: str, start: int, end: int) -> None:
    assert wanted({"range": header}, TOTAL) == ByteRange(start, end, TOTAL)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"range": ""},
        {"range": "bytes=-"},
        {"range": "bytes=6-4"},
        {"range": "bytes=1-2,4-5"},
        {"range": "bytes=x-"},
        {"range": "bytes=²-"},
        {"range": "bytes=" + "9" * 5_000 + "-"},
        {"range": "lines=1-2"},
        {"range": "bytes=4-", "if-range": '"etag"'},
    ],
)
def test_what_is_no_single_range_of_bytes_gets_the_whole(headers: dict[str, str]) -> None:
    assert wanted(headers, TOTAL) == WHOLE


@pytest.mark.parametrize(
    ("header", "total"),
    [("bytes=10-", 10), ("bytes=99-100", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-1", 0)],
)
def test_range_beyond_the_end_says_where_the_end_is(header: str, total: int) -> None:
    with pytest.raises(RangeNotSatisfiable) as refused:
        wanted({"range": header}, total)

    assert refused.value.headers == {"Content-Range": f"bytes */{total}"}


@pytest.mark.parametrize(
    ("start", "keys", "skip"),
    [
        (0, ["a", "b", "c"], 0),
        (2, ["a", "b", "c"], 2),
        (3, ["b", "c"], 0),
        (7, ["c"], 0),
        (9, ["c"], 2),
    ],
)
def test_range_begins_in_the_part_that_holds_its_first_byte(
    start: int, keys: list[str], skip: int
) -> None:
    parts = Parts(["a", "b", "c"], [3, 4, 3])

    assert ByteRange(start, 10, 10).parts(parts) == (keys, skip)


def test_empty_file_has_no_parts_to_read() -> None:
    assert wanted({}, 0).parts(Parts([], [])) == ([], 0)
