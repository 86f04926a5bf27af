"""Chat completions: create, look again, go on with a stream, delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from api import deleting
from api.answering import answer
from api.deps import WAITS, JobsReader, ServicesDep, Submitter, TurnDep
from api.dialects.chat import ChatFold, chat_completion
from api.openapi import EVENT_STREAM, gives, takes
from api.resuming import MAX_SEQ, cursor_of, find_shown_job, not_found
from api.schemas.chat import CreateChatCompletion
from api.schemas.objects import ChatCompletionShown
from api.schemas.reports import ChatCompletionDeleted
from api.submitting import Retry, complete, stream_of
from api.waiting import wait_with_client
from tasks.ids import CHAT_PREFIX
from tasks.jobs import Dialect

router = APIRouter(prefix="/v1/chat/completions")


@router.post(
    "",
    openapi_extra=takes(CreateChatCompletion),
    responses=gives(ChatCompletionShown, EVENT_STREAM),
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
        schema=CreateChatCompletion,
        fold=ChatFold,
        show=chat_completion,
    )


@router.get("/{completion_id}", responses=gives(ChatCompletionShown), dependencies=[WAITS])
async def get(
    request: Request, services: ServicesDep, caller: JobsReader, completion_id: str
) -> Response:
    """The answer, waited for if it isn't there yet."""
    job = await find_shown_job(services, caller, completion_id, CHAT_PREFIX, Dialect.CHAT)
    if not job.is_stored:
        raise not_found(Dialect.CHAT)
    row = await wait_with_client(services, caller, job.id, request)
    return await answer(services, row, lambda: chat_completion(job.with_row(row)))


@router.delete("/{completion_id}", responses=gives(ChatCompletionDeleted))
async def delete(
    services: ServicesDep, caller: Submitter, completion_id: str, turn: TurnDep
) -> Response:
    """Delete what was asked and answered; one that runs is cancelled first."""
    job = await find_shown_job(services, caller, completion_id, CHAT_PREFIX, Dialect.CHAT)
    await deleting.delete(services, caller, job.row, turn)
    return deleting.deleted(completion_id, "chat.completion.deleted")


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
    job = await find_shown_job(services, caller, completion_id, CHAT_PREFIX, Dialect.CHAT)
    cursor = cursor_of(last_event_id, starting_after)
    return stream_of(services, job, ChatFold(job), cursor=cursor)
