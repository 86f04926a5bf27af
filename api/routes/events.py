"""A job's events as a stream."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from api.deps import JobId, JobsReader, ServicesDep, find_job
from api.settings import STREAM_GRACE_S
from api.streams.reader import Reader
from api.streams.sse import EventStreamResponse
from tasks.errors import InvalidRequest

router = APIRouter(prefix="/v1/jobs")

MAX_SEQ = 2**53  # what JSON numbers hold exactly; Redis takes no more than 2**64 in an entry's id


@router.get("/{job_id}/events")
async def events(
    services: ServicesDep,
    caller: JobsReader,
    job_id: JobId,
    last_event_id: Annotated[str | None, Header()] = None,
    starting_after: Annotated[int | None, Query(ge=0, le=MAX_SEQ)] = None,
) -> Response:
    """Everything after an event, then live, until `done`. A browser resumes by the header."""
    cursor = _parse_event_id(last_event_id) if last_event_id else starting_after or 0
    row = await find_job(services, caller, job_id)
    services.streams.check_room()
    remaining_s = row["deadline_at"].timestamp() - time.time()
    return EventStreamResponse(
        hub=services.hub,
        streams=services.streams,
        reader=Reader(services.sources, row, cursor),
        max_age_s=max(0.0, remaining_s) + STREAM_GRACE_S,
    )


def _parse_event_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 16) or int(text) > MAX_SEQ:
        raise InvalidRequest("Last-Event-ID must be the id of an event.", param="Last-Event-ID")
    return int(text)
