"""Pages of buckets: aligned, each bucket once, and cursors that fit one query."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.reports.pages import MAX_TIME, BucketPage, Period, Width, bucket_page
from api.reports.results import units
from tasks.errors import InvalidRequest

HOURS = Width(3_600, 24, 168)
DAY = 86_400
PERIOD = Period(start_time=10 * DAY + 5, end_time=12 * DAY, now=12 * DAY, limit=9, page=None)


def _pages(period: Period, width: Width, question: dict[str, Any]) -> list[BucketPage]:
    pages = [bucket_page(period, width, question)]
    while (cursor := pages[-1].next_page) is not None:
        pages.append(bucket_page(replace(period, page=cursor), width, question))
    return pages


@given(
    seconds=st.sampled_from([60, 3_600, 86_400]),
    start=st.integers(0, MAX_TIME - 1),
    length=st.integers(1, 40 * 3_600),
    limit=st.none() | st.integers(1, 168),
)
def test_pages_show_every_bucket_once_in_order(
    seconds: int, start: int, length: int, limit: int | None
) -> None:
    end = min(start + length, MAX_TIME)
    period = Period(start_time=start, end_time=end, now=0, limit=limit, page=None)

    pages = _pages(period, Width(seconds, 24, 168), {})

    starts = [at for page in pages for at in page.starts]
    assert starts == list(range(start - start % seconds, end, seconds))
    assert all(first.end == second.start for first, second in pairwise(pages))
    assert pages[-1].end == end


def test_a_query_without_an_end_keeps_that_of_its_first_page() -> None:
    open_ended = replace(PERIOD, end_time=None)
    first = bucket_page(open_ended, HOURS, {})

    later = replace(open_ended, now=12 * DAY + 60, page=first.next_page)
    second = bucket_page(later, HOURS, {})

    assert second.query_end == first.query_end == 12 * DAY + 1


def test_another_number_of_buckets_may_be_asked_for_on_the_next_page() -> None:
    cursor = bucket_page(PERIOD, HOURS, {}).next_page

    page = bucket_page(replace(PERIOD, page=cursor, limit=2), HOURS, {})

    assert list(page.starts) == [10 * DAY + 9 * 3_600, 10 * DAY + 10 * 3_600]


@pytest.mark.parametrize(
    ("changes", "width", "question"),
    [
        ({"start_time": 10 * DAY + 6}, HOURS, {"group": ["a"]}),
        ({"end_time": 12 * DAY + 1}, HOURS, {"group": ["a"]}),
        ({"end_time": None}, HOURS, {"group": ["a"]}),
        ({}, replace(HOURS, seconds=60), {"group": ["a"]}),
        ({}, HOURS, {"group": ["b"]}),
    ],
)
def test_a_cursor_of_another_query_is_refused(
    changes: dict[str, Any], width: Width, question: dict[str, Any]
) -> None:
    cursor = bucket_page(PERIOD, HOURS, {"group": ["a"]}).next_page

    with pytest.raises(InvalidRequest) as caught:
        bucket_page(replace(PERIOD, page=cursor, **changes), width, question)

    assert caught.value.param == "page"


@given(st.text(max_size=40) | st.from_regex("page_[A-Za-z0-9_-]{32}", fullmatch=True))
def test_a_made_up_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidRequest):
        bucket_page(replace(PERIOD, page=cursor), HOURS, {})


@given(st.integers(0, 10**30))
def test_money_is_written_exactly(micros: int) -> None:
    assert Fraction(units(micros)) * 1_000_000 == micros


@given(st.integers(0, 8 * 10**15))
def test_money_read_as_a_double_still_tells_the_micros(micros: int) -> None:
    value = orjson.loads(orjson.dumps(orjson.Fragment(units(micros))))

    assert round(Fraction(value) * 1_000_000) == micros
