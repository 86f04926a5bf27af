"""Jobs: create, read, list, cancel."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated
from uuid import UUID

import structlog
from fastapi import APIRouter, Query, Request
from pydantic import ValidationError
from redis.exceptions import RedisError
from starlette.responses import Response

from api.admission import Submission
from api.deps import (
    IdempotencyKey,
    JobId,
    JobsReader,
    ServicesDep,
    Submitter,
    WaitSeconds,
    find_job,
)
from api.errors import invalid_request
from api.job_view import is_terminal, job_object
from api.json_body import read_json_object
from api.json_response import JsonResponse
from api.schemas.jobs import CreateJob
from api.services import Services
from store.jobs import JobRow, list_jobs, queue_position, request_cancel
from store.tenants import ApiKey
from tasks.errors import InvalidRequest, JobNotFound
from tasks.ids import format_job_id, parse_job_id
from tasks.jobs import JobStatus
from tasks.keys import cancel_channel

log = structlog.get_logger(__name__)

router = APIRouter(prefix="/v1/jobs")

MAX_PAGE = 100


@router.post("")
async def create(
    request: Request,
    services: ServicesDep,
    caller: Submitter,
    idempotency_key: IdempotencyKey,
    wait_s: WaitSeconds = 0.0,
) -> Response:
    """Admit a job. 202 as soon as it is committed, or when it is over within `wait_s`."""
    body = await read_json_object(request)
    try:
        parsed = CreateJob.model_validate(body)
    except ValidationError as error:
        raise invalid_request(error) from None
    admitted = await services.admission.submit(
        Submission(key=caller, request=parsed, body=body, idempotency_key=idempotency_key)
    )
    if admitted.row is not None and not wait_s:
        view: dict[str, object] = job_object(admitted.row)
    else:
        view = await _view(services, caller, await _wait(services, caller, admitted.job_id, wait_s))
    headers = {"Location": f"/v1/jobs/{format_job_id(admitted.job_id)}"}
    if not admitted.is_new:
        headers["Idempotency-Replayed"] = "true"
    return JsonResponse(view, 202, headers)


@router.get("")
async def list_(
    services: ServicesDep,
    caller: JobsReader,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    status: JobStatus | None = None,
) -> Response:
    """Newest first. `after` is the last id of the page before."""
    after_id = parse_job_id(after) if after is not None else None
    if after is not None and after_id is None:
        raise InvalidRequest("'after' must be the id of a job.", param="after")
    rows = await list_jobs(
        services.pool, caller.tenant_id, status=status, after=after_id, limit=limit + 1
    )
    page = [job_object(row) for row in rows[:limit]]
    return JsonResponse(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(rows) > limit,
        }
    )


@router.get("/{job_id}")
async def get(
    services: ServicesDep, caller: JobsReader, job_id: JobId, wait_s: WaitSeconds = 0.0
) -> Response:
    """One job; with `wait_s` when it is over, or after so many seconds."""
    row = await _wait(services, caller, job_id, wait_s)
    return JsonResponse(await _view(services, caller, row))


@router.post("/{job_id}/cancel")
async def cancel(services: ServicesDep, caller: Submitter, job_id: JobId) -> Response:
    """Ask for the end of a job. Answers with the job as it is then; a job that is over stays so."""
    result = await request_cancel(services.pool, caller.tenant_id, job_id, by="user")
    if result is None:
        raise JobNotFound
    if result.worker_id is not None:
        await _tell_worker(services, result.worker_id, job_id)
    if is_terminal(result.row):
        services.hub.note_over(job_id)
    return JsonResponse(await _view(services, caller, result.row))


async def _tell_worker(services: Services, worker_id: UUID, job_id: UUID) -> None:
    """Best effort: the worker's next beat reads the same from Postgres."""
    try:
        await services.redis.publish(cancel_channel(worker_id), job_id.hex)
    except RedisError as error:
        log.warning("cancel_not_published", error=type(error).__name__)


async def _wait(services: Services, caller: ApiKey, job_id: UUID, wait_s: float) -> JobRow:
    """The job, at the latest after `wait_s`. No connection to Postgres is held meanwhile."""
    row = await find_job(services, caller, job_id)
    if not wait_s or is_terminal(row):
        return row
    with suppress(TimeoutError):
        async with asyncio.timeout(wait_s), services.hub.watch(job_id) as channel:
            row = await find_job(services, caller, job_id)  # it may have ended before the watch
            if is_terminal(row):
                return row
            await channel.over.wait()
    return await find_job(services, caller, job_id)


async def _view(services: Services, caller: ApiKey, row: JobRow) -> dict[str, object]:
    position = None
    if row["status"] == JobStatus.QUEUED:
        position = await queue_position(services.pool, caller.tenant_id, row["id"])
    return job_object(row, position=position)
