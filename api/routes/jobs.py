"""Jobs: create, read, list, cancel, delete."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api import deleting
from api.answering import OK, answer
from api.deps import (
    JobId,
    JobsReader,
    ServicesDep,
    Submitter,
    TurnDep,
    WaitSeconds,
    check_is_shown,
    find_job,
    may_wait,
)
from api.job_view import job_object
from api.json_body import read_json_object
from api.json_response import JsonResponse, page_of
from api.openapi import gives, takes
from api.schemas.jobs import CreateJob
from api.schemas.objects import JobShown, Page
from api.schemas.reports import JobDeleted
from api.services import Services
from api.submitting import Retry, job_headers, read_asked, submit
from api.waiting import cancel_and_wait, wait_while_there
from store.jobs import JobRow, list_jobs, queue_position
from store.tenants import ApiKey
from tasks.errors import InvalidRequest
from tasks.ids import format_job_id, parse_job_id
from tasks.jobs import JobStatus

router = APIRouter(prefix="/v1/jobs")

MAX_PAGE = 100


@router.post(
    "", status_code=202, openapi_extra=takes(CreateJob), responses=gives(JobShown, status=202)
)
async def create(
    request: Request,
    services: ServicesDep,
    caller: Submitter,
    retry: Retry,
    wait_s: WaitSeconds = 0.0,
) -> Response:
    """Admit a job. 202 as soon as it is committed, or when it is over within `wait_s`."""
    if wait_s:
        await may_wait(request, services, caller)
    asked = await read_json_object(request, partial(read_asked, CreateJob, caller))
    admitted = await submit(request, services, caller, asked, retry)
    location = {"Location": f"/v1/jobs/{format_job_id(admitted.job_id)}"}
    headers = location | job_headers(admitted, asked)
    if admitted.row is not None and not wait_s:
        return JsonResponse(job_object(admitted.row), 202, headers)
    row = await wait_while_there(services, caller, admitted.job_id, request, wait_s)
    return await _view(services, caller, row, status=202, headers=headers)


@router.get("", responses=gives(Page[JobShown]))
async def list_(
    services: ServicesDep,
    caller: JobsReader,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    status: JobStatus | None = None,
) -> Response:
    """Newest first, without log-probabilities. `after` is the last id of the page before; a page of
    long answers ends before `limit`.
    """
    after_id = parse_job_id(after) if after is not None else None
    if after is not None and after_id is None:
        raise InvalidRequest("'after' must be the id of a job.", param="after")
    page = await list_jobs(
        services.pool, caller.tenant_id, status=status, after=after_id, limit=limit
    )
    jobs = await services.long_work.run(lambda: [job_object(row) for row in page.rows])
    return page_of(jobs, limit=limit, has_more=page.has_more)


@router.get("/{job_id}", responses=gives(JobShown))
async def get(
    request: Request,
    services: ServicesDep,
    caller: JobsReader,
    job_id: JobId,
    wait_s: WaitSeconds = 0.0,
) -> Response:
    """One job; with `wait_s` when it is over, or after so many seconds."""
    if wait_s:
        await may_wait(request, services, caller)
    row = await wait_while_there(services, caller, job_id, request, wait_s)
    check_is_shown(row)
    return await _view(services, caller, row)


@router.post("/{job_id}/cancel", responses=gives(JobShown))
async def cancel(
    request: Request, services: ServicesDep, caller: Submitter, job_id: JobId
) -> Response:
    """End a job. Answers with it once it is over; a job that was over before stays so."""
    row = await cancel_and_wait(services, caller, job_id, request)
    check_is_shown(row)
    return await _view(services, caller, row)


@router.delete("/{job_id}", responses=gives(JobDeleted))
async def delete(
    services: ServicesDep, caller: Submitter, job_id: JobId, turn: TurnDep
) -> Response:
    """Delete what was asked and answered, in whatever dialect; one that runs is cancelled first."""
    await deleting.delete(services, caller, await find_job(services, caller, job_id), turn)
    return deleting.deleted(format_job_id(job_id), "job")


async def _view(
    services: Services,
    caller: ApiKey,
    row: JobRow,
    *,
    status: int = OK,
    headers: Mapping[str, str] | None = None,
) -> Response:
    position = None
    if row["status"] == JobStatus.QUEUED:
        position = await queue_position(services.pool, caller.tenant_id, row["id"])
    return await answer(
        services, row, lambda: job_object(row, position=position), status=status, headers=headers
    )
