"""Batches: files of requests that run as jobs."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api import deleting
from api.deps import JobsReader, ServicesDep, Submitter
from api.job_limits import tier_for
from api.job_view import unix_time
from api.json_body import read_json_object
from api.json_response import JsonResponse, page_of
from api.limits.unpaid import Unpaid
from api.openapi import gives, takes
from api.schemas.batch_objects import BatchShown
from api.schemas.batches import CreateBatch
from api.schemas.objects import Page
from api.schemas.reports import BatchDeleted
from api.services import Services
from api.submitting import parse_body
from store.batch_turns import BatchRow
from store.batches import (
    NewBatch,
    cancel_batch,
    create_batch,
    delete_batch,
    get_batch,
    list_batches,
)
from store.files import FileRow, Purpose, get_file
from store.tenants import ApiKey
from tasks.errors import BatchNotFound, FileMissing, InvalidRequest
from tasks.ids import BATCH_PREFIX, FILE_PREFIX, format_job_id, parse_job_id, uuid7

router = APIRouter(prefix="/v1/batches")

MAX_PAGE = 100
_TIMES = (
    "created_at",
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


@router.post("", openapi_extra=takes(CreateBatch), responses=gives(BatchShown))
async def create(request: Request, services: ServicesDep, caller: Submitter) -> Response:
    """A batch of an uploaded file. Its lines are checked before the first one runs."""
    parsed = await read_json_object(request, partial(parse_body, CreateBatch))
    expiry = parsed.output_expires_after
    file = await _input_file(services, caller, parsed.input_file_id)
    new = NewBatch(
        id=uuid7(),
        tenant_id=caller.tenant_id,
        api_key_id=caller.key_id,
        endpoint=parsed.endpoint,
        completion_window=parsed.completion_window,
        window_s=parsed.window_s,
        service_tier=tier_for(caller, parsed.tier).value,
        input_file_id=file["id"],
        input_bytes=file["num_bytes"],
        output_ttl_s=expiry.seconds if expiry else None,
        metadata=parsed.metadata or {},
    )
    await services.uploads.require_room(caller.tenant_id)
    async with services.unpaid.one(caller.tenant_id, Unpaid.BATCHES):
        await create_batch(services.pool, new, services.batch_quota)
    return JsonResponse(batch_object(await _find(services, caller, new.id)))


@router.get("", responses=gives(Page[BatchShown]))
async def list_(
    services: ServicesDep,
    caller: JobsReader,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
) -> Response:
    """Newest first."""
    after_id = parse_job_id(after, BATCH_PREFIX) if after is not None else None
    if after is not None and after_id is None:
        raise InvalidRequest("'after' must be the id of a batch.", param="after")
    rows = await list_batches(services.pool, caller.tenant_id, after=after_id, limit=limit + 1)
    return page_of([batch_object(row) for row in rows], limit=limit)


@router.get("/{batch_id}", responses=gives(BatchShown))
async def get(services: ServicesDep, caller: JobsReader, batch_id: str) -> Response:
    """One batch as it is now; its output file can be read while it runs."""
    row = await _find(services, caller, parse_job_id(batch_id, BATCH_PREFIX))
    return JsonResponse(batch_object(row))


@router.post("/{batch_id}/cancel", responses=gives(BatchShown))
async def cancel(services: ServicesDep, caller: Submitter, batch_id: str) -> Response:
    """End a batch: what is done is kept and billed. One that is over stays so."""
    row = await _find(services, caller, parse_job_id(batch_id, BATCH_PREFIX))
    await cancel_batch(services.pool, caller.tenant_id, row["id"])
    return JsonResponse(batch_object(await _find(services, caller, row["id"])))


@router.delete("/{batch_id}", responses=gives(BatchDeleted))
async def delete(services: ServicesDep, caller: Submitter, batch_id: str) -> Response:
    """Gone at once for everybody, cancelled if it runs; its jobs and what it wrote follow."""
    parsed = parse_job_id(batch_id, BATCH_PREFIX)
    if parsed is None or not await delete_batch(services.pool, caller.tenant_id, parsed):
        raise BatchNotFound
    return deleting.deleted(batch_id, "batch")


def batch_object(row: BatchRow) -> dict[str, Any]:
    """OpenAI's batch object."""
    return {
        "id": format_job_id(row["id"], BATCH_PREFIX),
        "object": "batch",
        "endpoint": row["endpoint"],
        "errors": {"object": "list", "data": row["errors"]} if row["failed_at"] else None,
        "input_file_id": _file_id(row["input_file_id"]),
        "completion_window": row["completion_window"],
        "status": row["status"],
        "output_file_id": _file_id(row["output_file_id"]),
        "error_file_id": _file_id(row["error_file_id"]),
        **{name: unix_time(row[name]) for name in _TIMES},
        "request_counts": {
            "total": row["num_total"],
            "completed": row["num_completed"],
            "failed": row["num_failed"],
        },
        "usage": _usage(row),
        "metadata": row["metadata"],
        "service_tier": row["service_tier"],
        "millrace": {"waits_for": row["waits_for"]},
    }


async def _input_file(services: Services, caller: ApiKey, text: str) -> FileRow:
    """A file of the caller's, of the purpose `batch`. Raises FileMissing, InvalidRequest."""
    file_id = parse_job_id(text, FILE_PREFIX)
    row = await get_file(services.pool, caller.tenant_id, file_id) if file_id else None
    if file_id is None or row is None:
        raise FileMissing(param="input_file_id")
    if row["purpose"] != Purpose.BATCH:
        raise InvalidRequest("The file's purpose must be 'batch'.", param="input_file_id")
    return row


async def _find(services: Services, caller: ApiKey, batch_id: UUID | None) -> BatchRow:
    row = await get_batch(services.pool, caller.tenant_id, batch_id) if batch_id else None
    if row is None:
        raise BatchNotFound
    return row


def _file_id(file_id: UUID | None) -> str | None:
    return format_job_id(file_id, FILE_PREFIX) if file_id else None


def _usage(row: BatchRow) -> dict[str, Any]:
    details = {"cached_tokens": row["cached_tokens"], "cache_write_tokens": 0}
    return {
        "input_tokens": row["input_tokens"],
        "input_tokens_details": details,
        "output_tokens": row["output_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": row["input_tokens"] + row["output_tokens"],
    }
