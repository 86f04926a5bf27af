"""Files: upload, list, read, download, delete."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.deps import FileId, JobsReader, ServicesDep, Submitter
from api.files.ranges import wanted as wanted_range
from api.files.view import content_headers, file_object
from api.json_response import JsonResponse, page_of
from api.openapi import gives, takes
from api.schemas.objects import FileDeleted, FileShown, Page, UploadBody
from store.files import Purpose, delete_file, get_file, list_files, list_parts
from tasks.errors import FileMissing, InvalidRequest
from tasks.ids import format_file_id, parse_file_id

router = APIRouter(prefix="/v1/files")

MAX_PAGE = 10_000  # as stock clients ask for
PAGE_ROWS = 1_000  # that one answer holds; a client goes on behind them
_CONTENT_TYPES = ("application/octet-stream", "application/jsonl")


class Order(StrEnum):
    """By creation."""

    OLDEST_FIRST = "asc"
    NEWEST_FIRST = "desc"


@router.post("", openapi_extra=takes(UploadBody, "multipart/form-data"), responses=gives(FileShown))
async def create(request: Request, services: ServicesDep, caller: Submitter) -> Response:
    """Store a file. The answer leaves after the commit."""
    row = await services.uploads.take(request, caller.tenant_id)
    return JsonResponse(file_object(row))


@router.get("", responses=gives(Page[FileShown]))
async def list_(
    services: ServicesDep,
    caller: JobsReader,
    *,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
    order: Order = Order.NEWEST_FIRST,
    purpose: Purpose | None = None,
) -> Response:
    """`after` is the last id of the page before."""
    after_id = parse_file_id(after) if after is not None else None
    if after is not None and after_id is None:
        raise InvalidRequest("'after' must be the id of a file.", param="after")
    rows = await list_files(
        services.pool,
        caller.tenant_id,
        purpose=purpose,
        after=after_id,
        limit=min(limit, PAGE_ROWS) + 1,
        is_newest_first=order == Order.NEWEST_FIRST,
    )
    return page_of([file_object(row) for row in rows], limit=min(limit, PAGE_ROWS))


@router.get("/{file_id}", responses=gives(FileShown))
async def get(services: ServicesDep, caller: JobsReader, file_id: FileId) -> Response:
    """One file, without its contents."""
    row = await get_file(services.pool, caller.tenant_id, file_id)
    if row is None:
        raise FileMissing
    return JsonResponse(file_object(row))


@router.get(
    "/{file_id}/content",
    response_class=Response,
    responses=gives(None, *_CONTENT_TYPES) | gives(None, *_CONTENT_TYPES, status=206),
)
async def content(
    request: Request, services: ServicesDep, caller: JobsReader, file_id: FileId
) -> Response:
    """The bytes, or a range of them. Of an output file that is still written, what is there."""
    row = await get_file(services.pool, caller.tenant_id, file_id)
    if row is None:
        raise FileMissing
    parts = await list_parts(services.pool, caller.tenant_id, file_id)
    range_ = wanted_range(request.headers, parts.num_bytes)
    headers = content_headers(row)
    return await services.downloads.response(caller.tenant_id, parts, range_, headers)


@router.delete("/{file_id}", responses=gives(FileDeleted))
async def delete(services: ServicesDep, caller: Submitter, file_id: FileId) -> Response:
    """Gone at once for everybody; the contents follow within minutes."""
    if not await delete_file(services.pool, caller.tenant_id, file_id):
        raise FileMissing
    return JsonResponse({"id": format_file_id(file_id), "object": "file", "deleted": True})
