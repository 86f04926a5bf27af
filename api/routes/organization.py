"""Usage and costs in OpenAI's buckets, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import Field
from starlette.responses import Response

from api.deps import ServicesDep, UsageReader
from api.json_response import JsonResponse
from api.openapi import gives
from api.schemas.reports import BucketPage
from store.tenants import ApiKey
from store.usage_buckets import BucketQuery, cost_buckets, usage_buckets
from tasks.errors import InvalidRequest

router = APIRouter(prefix="/v1/organization")

CSV = "text/csv"
MICROS = 1_000_000
# Width of a bucket -> its length, buckets a page by default and at most. OpenAI's.
_WIDTHS = {
    "1m": (timedelta(minutes=1), 60, 1_440),
    "1h": (timedelta(hours=1), 24, 168),
    "1d": (timedelta(days=1), 7, 31),
}
_COST_PAGES = (7, 180)
MAX_FILTER_VALUES = 100

# Through the year 9999, which is as far as Postgres and Python agree.
UnixTime = Annotated[int, Query(ge=0, le=253_402_300_799)]
# Postgres takes no NUL in a text.
Value = Annotated[str, Field(max_length=256, pattern=r"^[^\x00]*$")]
Values = Annotated[list[Value] | None, Query(max_length=MAX_FILTER_VALUES)]
UsageGroup = Literal["project_id", "user_id", "api_key_id", "model", "batch", "service_tier"]
CostGroup = Literal["project_id", "line_item", "api_key_id"]


@dataclass(frozen=True, slots=True)
class Period:
    """What both reports are asked for in the same words."""

    start_time: int
    end_time: int | None
    limit: int | None
    page: str | None
    format: str | None


async def _period(
    start_time: UnixTime,
    end_time: UnixTime | None = None,
    limit: Annotated[int | None, Query(ge=1, le=1_440)] = None,
    page: Annotated[str | None, Query(max_length=32)] = None,
    format: Literal["json", "csv"] | None = None,
) -> Period:
    return Period(start_time, end_time, limit, page, format)


PeriodDep = Annotated[Period, Depends(_period)]


@router.get("/usage/completions", responses=gives(BucketPage, CSV))
async def usage(
    services: ServicesDep,
    caller: UsageReader,
    period: PeriodDep,
    *,
    bucket_width: Literal["1m", "1h", "1d"] = "1d",
    group_by: Annotated[list[UsageGroup] | None, Query()] = None,
    group_by_: Annotated[list[UsageGroup] | None, Query(alias="group_by[]")] = None,
    models: Values = None,
    api_key_ids: Values = None,
    user_ids: Values = None,
    batch: bool | None = None,
) -> Response:
    """Tokens and requests of settled jobs, by the time they ended."""
    width, default, most = _WIDTHS[bucket_width]
    pages = _Pages(period, width, default, most)
    groups = [*(group_by or ()), *(group_by_ or ())]
    query = BucketQuery(
        start=pages.start,
        end=pages.end,
        width=width,
        group_by=groups,
        filters={
            "models": models or (),
            "api_key_ids": api_key_ids or (),
            "user_ids": user_ids or (),
        },
        is_batch=batch,
    )
    rows = await usage_buckets(services.pool, caller.tenant_id, query)
    return _answer(pages, rows, lambda row: _usage_result(caller, groups, row))


@router.get("/costs", responses=gives(BucketPage, CSV))
async def costs(
    services: ServicesDep,
    caller: UsageReader,
    period: PeriodDep,
    *,
    bucket_width: Literal["1d"] = "1d",
    group_by: Annotated[list[CostGroup] | None, Query()] = None,
    group_by_: Annotated[list[CostGroup] | None, Query(alias="group_by[]")] = None,
    api_key_ids: Values = None,
) -> Response:
    """Money charged, by the time the jobs ended; the sum of all is what the ledger holds."""
    width = _WIDTHS[bucket_width][0]
    pages = _Pages(period, width, *_COST_PAGES)
    groups = [*(group_by or ()), *(group_by_ or ())]
    query = BucketQuery(
        start=pages.start,
        end=pages.end,
        width=width,
        group_by=groups,
        filters={"api_key_ids": api_key_ids or ()},
    )
    rows = await cost_buckets(services.pool, caller.tenant_id, query)
    return _answer(pages, rows, lambda row: _cost_result(caller, groups, row))


class _Pages:
    """The buckets of one page. They begin at multiples of their width since the epoch."""

    def __init__(self, period: Period, width: timedelta, default: int, most: int) -> None:
        limit = period.limit or default
        if limit > most:
            raise InvalidRequest(f"'limit' is at most {most} here.", param="limit")
        end = _time(period.end_time) if period.end_time is not None else datetime.now(UTC)
        first = _floor(_time(period.start_time), width)
        if first >= end:
            raise InvalidRequest("'start_time' is not before 'end_time'.", param="start_time")
        self.start = self._page_start(period.page, first, end, width)
        self.end = min(self.start + limit * width, end)
        self.is_csv = period.format == "csv"
        self.width = width
        self.next_page = None
        if self.start + limit * width < end:
            self.next_page = f"page_{int((self.start + limit * width).timestamp())}"

    @property
    def buckets(self) -> list[datetime]:
        """The beginning of each, empty ones too."""
        num = -((self.start - self.end) // self.width)
        return [self.start + number * self.width for number in range(num)]

    @staticmethod
    def _page_start(page: str | None, first: datetime, end: datetime, width: timedelta) -> datetime:
        if page is None:
            return first
        digits = page.removeprefix("page_")
        if digits.isdecimal() and digits.isascii() and len(digits) <= 12:
            start = _time(int(digits))
            if first <= start < end and _floor(start, width) == start:
                return start
        raise InvalidRequest("'page' is not one of this query's.", param="page")


def _answer(pages: _Pages, rows: Sequence[Mapping[str, Any]], show: Any) -> Response:
    by_bucket: dict[datetime, list[dict[str, Any]]] = {at: [] for at in pages.buckets}
    for row in rows:
        by_bucket[row["bucket"].astimezone(UTC)].append(show(row))
    buckets = [
        {
            "object": "bucket",
            "start_time": int(at.timestamp()),
            "end_time": int(min(at + pages.width, max(pages.end, at)).timestamp()),
            "results": results,
        }
        for at, results in by_bucket.items()
    ]
    if pages.is_csv:
        return _csv(buckets)
    return JsonResponse(
        {
            "object": "page",
            "data": buckets,
            "has_more": pages.next_page is not None,
            "next_page": pages.next_page,
        }
    )


def _usage_result(caller: ApiKey, groups: Sequence[str], row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("user_id", "api_key_id", "model", "batch", "service_tier")
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": row["input_tokens"],
        "input_cached_tokens": row["input_cached_tokens"],
        "input_cache_write_tokens": 0,
        "output_tokens": row["output_tokens"],
        "input_audio_tokens": 0,
        "output_audio_tokens": 0,
        "num_model_requests": row["num_model_requests"],
        "project_id": _project(caller) if "project_id" in groups else None,
        **{name: row.get(name) for name in names},
    }


def _cost_result(caller: ApiKey, groups: Sequence[str], row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "object": "organization.costs.result",
        # A double holds micros of up to nine billion units exactly.
        "amount": {"value": row["amount_micros"] / MICROS, "currency": row["currency"].lower()},
        "line_item": row.get("line_item"),
        "project_id": _project(caller) if "project_id" in groups else None,
        "api_key_id": row.get("api_key_id"),
        "quantity": row["quantity"] if "line_item" in groups else None,
    }


def _project(caller: ApiKey) -> str:
    """A tenant is what OpenAI calls a project."""
    return f"proj_{caller.tenant_id.hex}"


def _csv(buckets: Sequence[Mapping[str, Any]]) -> Response:
    """One line a result. Cells that a spreadsheet would run as formulas are marked as text."""
    lines = [
        {"start_time": bucket["start_time"], "end_time": bucket["end_time"], **_flat(result)}
        for bucket in buckets
        for result in bucket["results"]
    ]
    text = io.StringIO()
    writer = csv.writer(text)
    if lines:
        writer.writerow(lines[0])
        writer.writerows([_safe(value) for value in line.values()] for line in lines)
    headers = {"Content-Disposition": 'attachment; filename="usage.csv"'}
    return Response(text.getvalue(), media_type=f"{CSV}; charset=utf-8", headers=headers)


def _flat(result: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in result.items() if name not in ("object", "amount")}
    amount = result.get("amount")
    return flat | ({"amount": amount["value"], "currency": amount["currency"]} if amount else {})


def _safe(value: Any) -> Any:
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula else value


def _floor(at: datetime, width: timedelta) -> datetime:
    epoch = datetime.fromtimestamp(0, UTC)
    return epoch + (at - epoch) // width * width


def _time(unix_seconds: int) -> datetime:
    return datetime.fromtimestamp(unix_seconds, UTC)
