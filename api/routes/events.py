"""A job's events as a stream."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from api.deps import WAITS, JobId, JobsReader, ServicesDep, find_job
from api.openapi import EVENT_STREAM, gives
from api.resuming import MAX_SEQ, cursor_of
from api.streams.encoder import NativeEncoder
from api.submitting import event_stream

router = APIRouter(prefix="/v1/jobs")


@router.get(
    "/{job_id}/events",
    response_class=Response,
    responses=gives(None, EVENT_STREAM),
    dependencies=[WAITS],
)
async def events(
    services: ServicesDep,
    caller: JobsReader,
    job_id: JobId,
    last_event_id: Annotated[str | None, Header()] = None,
    starting_after: Annotated[int | None, Query(ge=0, le=MAX_SEQ)] = None,
) -> Response:
    """Everything after an event, then live, until `done`. A browser resumes by the header."""
    cursor = cursor_of(last_event_id, starting_after)
    row = await find_job(services, caller, job_id)
    return event_stream(services, row, NativeEncoder(), cursor=cursor)
