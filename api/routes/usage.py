"""What the tenant used, in all and job by job, and what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from api.deps import ServicesDep, UsageReader
from api.json_response import JsonResponse, page_of
from api.openapi import gives
from api.reports.csv_lines import CSV, WantsCsv
from api.reports.jobs_export import ReadPage, Row, export_jobs, job_usage
from api.reports.pages import MAX_TIME
from api.schemas.objects import Page, UsageShown
from api.schemas.usage import JobUsageShown
from api.services import Services
from store.job_usage import Mark, find_job_usage, list_job_usage, list_settled
from store.pools import postgres_now
from store.tenants import ApiKey
from store.usage_reports import UsageReport, usage_report
from tasks.errors import InvalidRequest
from tasks.ids import parse_job_id

router = APIRouter(prefix="/v1/usage")

DEFAULT_PERIOD = timedelta(days=30)
_SUMMED = ("num_jobs", "input_tokens", "cached_tokens", "output_tokens", "amount_micros")


class JobOrder(StrEnum):
    """In which order settled jobs are listed."""

    ENDED = "ended"
    SETTLED = "settled"  # can be followed: what is settled later comes later


UnixTime = Annotated[int, Query(ge=0, le=MAX_TIME)]


@dataclass(frozen=True, slots=True)
class Period:
    """[start, end)"""

    start: datetime
    end: datetime


async def _period(
    services: ServicesDep,
    caller: UsageReader,
    start_time: UnixTime | None = None,
    end_time: UnixTime | None = None,
) -> Period:
    """By default the last 30 days."""
    if end_time is not None:
        end = _time(end_time)
    else:
        end = await postgres_now(services.pool, caller.tenant_id)
    start = _time(start_time) if start_time is not None else max(end - DEFAULT_PERIOD, _time(0))
    if start > end:
        raise InvalidRequest("'start_time' is after 'end_time'.", param="start_time")
    return Period(start, end)


PeriodDep = Annotated[Period, Depends(_period)]


@router.get("", responses=gives(UsageShown))
async def get(services: ServicesDep, caller: UsageReader, period: PeriodDep) -> Response:
    """Settled jobs that ended in [start_time, end_time)."""
    start, end = period.start, period.end
    report = await usage_report(services.pool, caller.tenant_id, start=start, end=end)
    return JsonResponse(
        {
            "object": "usage",
            "start_time": int(start.timestamp()),
            "end_time": int(end.timestamp()),
            **_report(report),
        }
    )


@router.get("/jobs", responses=gives(Page[JobUsageShown], CSV))
async def jobs(
    services: ServicesDep,
    caller: UsageReader,
    start_time: UnixTime | None = None,
    end_time: UnixTime | None = None,
    *,
    wants_csv: WantsCsv,
    order: JobOrder = JobOrder.ENDED,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Response:
    """Settled jobs, those first that ended first, or with `order=settled` those first that were
    settled first. As CSV all of them at once, whatever `limit`.
    """
    behind = None if after is None else await _find(services, caller, after)
    if order is JobOrder.SETTLED:
        if start_time is not None or end_time is not None:
            raise InvalidRequest("'order=settled' takes no period.", param="order")
        read = _as_settled(services, caller, behind)
    else:
        period = await _period(services, caller, start_time, end_time)
        read = _as_ended(services, caller, period, behind)
    if wants_csv:
        return await export_jobs(services.downloads.slots, caller.tenant_id, read)
    rows = await read(None, limit + 1)
    return page_of([job_usage(row) for row in rows], limit=limit)


def _as_ended(services: Services, caller: ApiKey, period: Period, behind: Row | None) -> ReadPage:
    first = max(Mark(period.start), Mark.behind(behind)) if behind else Mark(period.start)

    async def read(last: Row | None, limit: int) -> Sequence[Row]:
        after = first if last is None else Mark.behind(last)
        return await list_job_usage(
            services.pool, caller.tenant_id, after=after, end=period.end, limit=limit
        )

    return read


def _as_settled(services: Services, caller: ApiKey, behind: Row | None) -> ReadPage:
    async def read(last: Row | None, limit: int) -> Sequence[Row]:
        row = last or behind
        after = (row["settled_seq"] or 0) if row else 0
        return await list_settled(services.pool, caller.tenant_id, after=after, limit=limit)

    return read


async def _find(services: Services, caller: ApiKey, after: str) -> Row:
    job_id = parse_job_id(after)
    row = await find_job_usage(services.pool, caller.tenant_id, job_id) if job_id else None
    if row is None:
        raise InvalidRequest("'after' must be the id of a settled job.", param="after")
    return row


def _report(report: UsageReport) -> dict[str, Any]:
    available = report.balance_micros + report.credit_limit_micros - report.held_micros
    return {
        "currency": report.currency,
        "balance_micros": report.balance_micros,
        "held_micros": report.held_micros,
        "available_micros": available,
        "totals": {name: sum(line[name] for line in report.lines) for name in _SUMMED},
        "data": report.lines,
    }


def _time(unix_seconds: int) -> datetime:
    return datetime.fromtimestamp(unix_seconds, UTC)
