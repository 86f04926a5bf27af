"""What the tenant used, and what is left."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from api.deps import ServicesDep, UsageReader
from api.json_response import JsonResponse
from api.openapi import gives
from api.schemas.objects import UsageShown
from store.usage_reports import UsageReport, usage_report
from tasks.errors import InvalidRequest

router = APIRouter(prefix="/v1/usage")

DEFAULT_PERIOD = timedelta(days=30)
_SUMMED = ("num_jobs", "input_tokens", "cached_tokens", "output_tokens", "amount_micros")

# Through the year 9999, which is as far as Postgres and Python agree.
UnixTime = Annotated[int, Query(ge=0, le=253_402_300_799)]


@router.get("", responses=gives(UsageShown))
async def get(
    services: ServicesDep,
    caller: UsageReader,
    start_time: UnixTime | None = None,
    end_time: UnixTime | None = None,
) -> Response:
    """Settled jobs that ended in [start_time, end_time); by default the last 30 days."""
    end = _time(end_time) if end_time is not None else datetime.now(UTC)
    start = _time(start_time) if start_time is not None else max(end - DEFAULT_PERIOD, _time(0))
    if start > end:
        raise InvalidRequest("'start_time' is after 'end_time'.", param="start_time")
    report = await usage_report(services.pool, caller.tenant_id, start=start, end=end)
    return JsonResponse(
        {
            "object": "usage",
            "start_time": int(start.timestamp()),
            "end_time": int(end.timestamp()),
            **_report(report),
        }
    )


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
