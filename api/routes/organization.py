"""Usage and costs in OpenAI's buckets, as JSON and as CSV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import StringConstraints
from starlette.responses import Response

from api.deps import ServicesDep, UsageReader
from api.json_response import JsonResponse
from api.openapi import gives
from api.reports.csv_lines import CSV, WantsCsv, csv_headers, csv_lines
from api.reports.lists import ListRoute
from api.reports.pages import MAX_TIME, BucketPage, Period, Width, bucket_page
from api.reports.results import (
    COST_COLUMNS,
    USAGE_COLUMNS,
    Result,
    buckets,
    cost_result,
    csv_rows,
    usage_result,
)
from api.schemas.usage import BucketPageShown, CostResultShown, UsageResultShown
from store.pools import postgres_now
from store.tenants import ApiKey
from store.usage_buckets import BucketQuery, cost_buckets, usage_buckets
from tasks.ids import format_project_id

router = APIRouter(prefix="/v1/organization", route_class=ListRoute)

_WIDTHS = {"1m": Width(60, 60, 1_440), "1h": Width(3_600, 24, 168), "1d": Width(86_400, 7, 31)}
_COST_WIDTH = Width(86_400, 7, 180)

UnixTime = Annotated[int, Query(ge=0, le=MAX_TIME)]
# Postgres can't hold a NUL, and so nothing can match it.
Value = Annotated[str, StringConstraints(max_length=512, pattern="^[^\x00]*$")]
Values = Annotated[list[Value] | None, Query(max_length=100)]
UsageGroup = Literal["project_id", "user_id", "api_key_id", "model", "batch", "service_tier"]
CostGroup = Literal["project_id", "user_id", "line_item", "api_key_id"]


async def _now(services: ServicesDep, caller: UsageReader, end_time: UnixTime | None = None) -> int:
    """Where a report ends that names no end."""
    if end_time is not None:
        return end_time
    return int((await postgres_now(services.pool, caller.tenant_id)).timestamp())


async def _period(
    now: Annotated[int, Depends(_now)],
    start_time: UnixTime,
    end_time: UnixTime | None = None,
    limit: Annotated[int | None, Query(ge=1)] = None,
    page: Annotated[str | None, Query(max_length=64)] = None,
) -> Period:
    return Period(start_time=start_time, end_time=end_time, now=now, limit=limit, page=page)


PeriodDep = Annotated[Period, Depends(_period)]


@router.get("/usage/completions", responses=gives(BucketPageShown[UsageResultShown], CSV))
async def usage(
    services: ServicesDep,
    caller: UsageReader,
    period: PeriodDep,
    wants_csv: WantsCsv,
    *,
    bucket_width: Literal["1m", "1h", "1d"] = "1d",
    group_by: Annotated[list[UsageGroup] | None, Query()] = None,
    project_ids: Values = None,
    user_ids: Values = None,
    api_key_ids: Values = None,
    models: Values = None,
    batch: bool | None = None,
) -> Response:
    """Tokens and requests of settled jobs, by the time they ended."""
    groups = sorted(set(group_by or ()))
    filters = _given(user_id=user_ids, api_key_id=api_key_ids, model=models)
    question = {"usage": [groups, filters, project_ids, batch]}
    page = bucket_page(period, _WIDTHS[bucket_width], question)
    rows = []
    if _is_of(caller, project_ids):
        query = _query(page, groups, filters, is_batch=batch)
        rows = await usage_buckets(services.pool, caller.tenant_id, query)
    project = _project(caller, groups)

    def show() -> Response:
        if wants_csv:
            return _csv("usage", page, USAGE_COLUMNS, csv_rows(page, project, rows))
        return _json(page, buckets(page, rows, partial(usage_result, project)))

    return await services.long_work.run(show)


@router.get("/costs", responses=gives(BucketPageShown[CostResultShown], CSV))
async def costs(
    services: ServicesDep,
    caller: UsageReader,
    period: PeriodDep,
    wants_csv: WantsCsv,
    *,
    bucket_width: Literal["1d"] = "1d",
    group_by: Annotated[list[CostGroup] | None, Query()] = None,
    project_ids: Values = None,
    api_key_ids: Values = None,
    line_items: Values = None,
) -> Response:
    """Money charged, by the time the jobs ended. The sum of all is what the ledger holds."""
    groups = sorted(set(group_by or ()))
    filters = _given(api_key_id=api_key_ids)
    question = {"costs": [groups, filters, project_ids, line_items]}
    page = bucket_page(period, _COST_WIDTH, question)
    rows = []
    if _is_of(caller, project_ids):
        query = _query(page, groups, filters, line_items=line_items)
        rows = await cost_buckets(services.pool, caller.tenant_id, query)
    project = _project(caller, groups)

    def show() -> Response:
        if wants_csv:
            return _csv("costs", page, COST_COLUMNS, csv_rows(page, project, rows))
        return _json(page, buckets(page, rows, partial(cost_result, project)))

    return await services.long_work.run(show)


def _given(**filters: list[str] | None) -> dict[str, list[str]]:
    return {column: values for column, values in filters.items() if values is not None}


def _is_of(caller: ApiKey, project_ids: Sequence[str] | None) -> bool:
    """A key sees one project. Others are empty, whether or not they exist."""
    return project_ids is None or format_project_id(caller.tenant_id) in project_ids


def _project(caller: ApiKey, groups: Sequence[str]) -> str | None:
    return format_project_id(caller.tenant_id) if "project_id" in groups else None


def _query(
    page: BucketPage, groups: Sequence[str], filters: Mapping[str, Sequence[str]], **more: Any
) -> BucketQuery:
    return BucketQuery(
        start=datetime.fromtimestamp(page.start, UTC),
        end=datetime.fromtimestamp(page.end, UTC),
        width=timedelta(seconds=page.width_s),
        group_by=groups,
        filters=filters,
        **more,
    )


def _json(page: BucketPage, data: Sequence[Result]) -> Response:
    return JsonResponse(
        {
            "object": "page",
            "data": data,
            "has_more": page.next_page is not None,
            "next_page": page.next_page,
        }
    )


def _csv(
    name: str, page: BucketPage, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> Response:
    """A page like any other: the cursor to the next stands in a header."""
    headers = csv_headers(name)
    if page.next_page is not None:
        headers["x-next-page"] = page.next_page
    return Response(csv_lines(columns, rows), headers=headers)
