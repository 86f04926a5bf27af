"""One range of a file's bytes (RFC 9110, 14). Pure."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from store.files import Parts
from tasks.errors import RangeNotSatisfiable

_ONE_RANGE = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes from `start` on and before `end`, of the `total` that a file has by now."""

    start: int
    end: int
    total: int
    is_partial: bool = True  # asked for as a range, even if it is all there is

    @property
    def num_bytes(self) -> int:
        return self.end - self.start

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer."""
        headers = {"accept-ranges": "bytes", "content-length": str(self.num_bytes)}
        if self.is_partial:
            headers["content-range"] = f"bytes {self.start}-{self.end - 1}/{self.total}"
        return headers

    def parts(self, parts: Parts) -> tuple[Sequence[str], int]:
        """(Keys of the objects from the one where it begins, bytes of that one before it)."""
        ends = list(accumulate(parts.sizes))
        first = bisect_right(ends, self.start)
        return parts.object_keys[first:], self.start - (ends[first - 1] if first else 0)


def wanted(headers: Mapping[str, str], total: int) -> ByteRange:
    """The range a request asks for, else all. Raises RangeNotSatisfiable if none of it is there.

    Several ranges, other units and nonsense get the whole, as the RFC has it; so does `If-Range`,
    since files have no validator that could match.
    """
    whole = ByteRange(0, total, total, is_partial=False)
    match = _ONE_RANGE.fullmatch(headers.get("range", "").strip())
    if match is None or "if-range" in headers:
        return whole
    first, last = match.groups()
    if first and last and int(last) < int(first):
        return whole
    if first:
        return _satisfiable(int(first), min(int(last) + 1, total) if last else total, total)
    return _satisfiable(max(0, total - int(last)), total, total) if last else whole


def _satisfiable(start: int, end: int, total: int) -> ByteRange:
    if start >= total:
        error = RangeNotSatisfiable()
        error.headers["Content-Range"] = f"bytes */{total}"
        raise error
    return ByteRange(start, end, total)
