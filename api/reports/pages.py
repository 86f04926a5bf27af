"""The buckets of one page, and the cursor to the next. Times are whole unix seconds.

Buckets begin at multiples of their width since 1970, UTC. All of a page are there, empty ones too.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from tasks.errors import InvalidRequest

# Through the year 9999, which is as far as Postgres and Python agree.
MAX_TIME = 253_402_300_799

_CURSOR = re.compile("page_([A-Za-z0-9_-]{32})")
_BODY = struct.Struct(">QQ8s")  # where the page begins, where the query ends, its digest


@dataclass(frozen=True, slots=True)
class Width:
    """Length of a bucket, and buckets a page. OpenAI's numbers."""

    seconds: int
    default_limit: int
    max_limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """What any report by time is asked for."""

    start_time: int
    end_time: int | None
    now: int  # the default end, of Postgres' clock
    limit: int | None
    page: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketPage:
    """One page of a query that ends at `query_end`."""

    start: int
    query_end: int
    width_s: int
    limit: int
    digest: bytes

    @property
    def end(self) -> int:
        """Where the page ends: its last bucket may be cut short by the query's end."""
        return min(self.start + self.limit * self.width_s, self.query_end)

    @property
    def starts(self) -> range:
        """The beginning of each bucket."""
        return range(self.start, self.end, self.width_s)

    @property
    def next_page(self) -> str | None:
        """The cursor behind this page. It keeps the query's end, so that all pages have one."""
        if self.end == self.query_end:
            return None
        body = _BODY.pack(self.end, self.query_end, self.digest)
        return f"page_{base64.urlsafe_b64encode(body).decode()}"


def bucket_page(period: Period, width: Width, question: Mapping[str, Any]) -> BucketPage:
    """The page a request asks for. `question` is all that its other pages must have in common.

    Raises InvalidRequest.
    """
    limit = period.limit or width.default_limit
    if limit > width.max_limit:
        raise InvalidRequest(f"'limit' is at most {width.max_limit} here.", param="limit")
    end = period.now + 1 if period.end_time is None else period.end_time
    if period.start_time >= end:
        raise InvalidRequest("'start_time' is not before 'end_time'.", param="start_time")
    page = BucketPage(
        start=period.start_time // width.seconds * width.seconds,
        query_end=end,
        width_s=width.seconds,
        limit=limit,
        digest=_digest(period, width, question),
    )
    return page if period.page is None else _behind(page, period.page, period.end_time)


def _behind(first: BucketPage, cursor: str, end_time: int | None) -> BucketPage:
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise InvalidRequest("'page' is no cursor of this route.", param="page")
    start, query_end, digest = _BODY.unpack(base64.urlsafe_b64decode(match[1]))
    is_of_query = digest == first.digest and query_end == (end_time or query_end)
    if not (is_of_query and first.start < start < query_end <= MAX_TIME):
        raise InvalidRequest("'page' is a cursor of another query.", param="page")
    return BucketPage(
        start=start // first.width_s * first.width_s,
        query_end=query_end,
        width_s=first.width_s,
        limit=first.limit,
        digest=digest,
    )


def _digest(period: Period, width: Width, question: Mapping[str, Any]) -> bytes:
    """Pages may differ in their number of buckets and nothing else."""
    parts = [period.start_time, period.end_time, width.seconds, question]
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).digest()[:8]
