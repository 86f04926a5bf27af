"""Text completions: create, look again, go on with a stream, delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from api import deleting
from api.answering import answer
from api.deps import WAITS, JobsReader, ServicesDep, Submitter, TurnDep
from api.dialects.completion import CompletionFold, text_completion
from api.openapi import EVENT_STREAM, gives, takes
from api.resuming import MAX_SEQ, cursor_of, find_shown_job, not_found
from api.schemas.completions import CreateCompletion
from api.schemas.objects import CompletionShown
from api.schemas.reports import CompletionDeleted
from api.submitting import Retry, complete, stream_of
from api.waiting import wait_with_client
from tasks.ids import COMPLETION_PREFIX
from tasks.jobs import Dialect

router = APIRouter(prefix="/v1/completions")


@router.post(
    "", openapi_extra=takes(CreateCompletion), responses=gives(CompletionShown, EVENT_STREAM)
)
async def create(
    request: Request, services: ServicesDep, caller: Submitter, retry: Retry
) -> Response:
    """An answer, or with `stream` its chunks."""
    return await complete(
        services,
        caller,
        request,
        retry,
        schema=CreateCompletion,
        fold=CompletionFold,
        show=text_completion,
    )


@router.get("/{completion_id}", responses=gives(CompletionShown), dependencies=[WAITS])
async def get(
    request: Request, services: ServicesDep, caller: JobsReader, completion_id: str
) -> Response:
    """The answer, waited for if it isn't there yet."""
    job = await find_shown_job(
        services, caller, completion_id, COMPLETION_PREFIX, Dialect.COMPLETION
    )
    if not job.is_stored:
        raise not_found(Dialect.COMPLETION)
    row = await wait_with_client(services, caller, job.id, request)
    return await answer(services, row, lambda: text_completion(job.with_row(row)))


@router.delete("/{completion_id}", responses=gives(CompletionDeleted))
async def delete(
    services: ServicesDep, caller: Submitter, completion_id: str, turn: TurnDep
) -> Response:
    """Delete what was asked and answered; one that runs is cancelled first."""
    job = await find_shown_job(
        services, caller, completion_id, COMPLETION_PREFIX, Dialect.COMPLETION
    )
    await deleting.delete(services, caller, job.row, turn)
    return deleting.deleted(completion_id, "text_completion.deleted")


@router.get(
    "/{completion_id}/events",
    response_class=Response,
    responses=gives(None, EVENT_STREAM),
    dependencies=[WAITS],
)
async def events(
    services: ServicesDep,
    caller: JobsReader,
    completion_id: str,
    last_event_id: Annotated[str | None, Header()] = None,
    starting_after: Annotated[int | None, Query(ge=0, le=MAX_SEQ)] = None,
) -> Response:
    """The chunks behind a number on, at any replica, as often as one likes."""
    job = await find_shown_job(
        services, caller, completion_id, COMPLETION_PREFIX, Dialect.COMPLETION
    )
    cursor = cursor_of(last_event_id, starting_after)
    return stream_of(services, job, CompletionFold(job), cursor=cursor)
