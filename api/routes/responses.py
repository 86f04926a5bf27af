"""Responses: create, look, go on with a stream, cancel, delete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from api import deleting
from api.answering import answer
from api.conversation import with_conversation
from api.deps import JobsReader, ServicesDep, Submitter, TurnDep, may_wait
from api.dialects.fold import ShownJob
from api.dialects.response import ResponseFold, response_object
from api.generation import Generation
from api.job_view import is_terminal
from api.json_body import read_json_object
from api.json_response import JsonResponse, page_of
from api.openapi import EVENT_STREAM, gives, takes
from api.references import find_kept
from api.resuming import MAX_SEQ, cursor_of, find_shown_job, not_found
from api.schemas.objects import Page
from api.schemas.reports import InputTokens, ResponseDeleted, ResponseShown
from api.schemas.response_items import REFERENCE, InputItem, items_of
from api.schemas.responses import CountInput, CreateResponse
from api.services import Services
from api.submitting import (
    Retry,
    answer_headers,
    answer_when_over,
    parse_body,
    read_asked,
    shown_job,
    stream_of,
    submit,
)
from api.waiting import cancel_and_wait
from store.jobs import has_event_log
from store.tenants import ApiKey
from tasks.errors import InvalidRequest, StreamExpired
from tasks.ids import RESPONSE_PREFIX, format_job_id
from tasks.jobs import Dialect
from tasks.stream import read_log

router = APIRouter(prefix="/v1/responses")

NOTHING_SEEN = -1  # events are numbered from 0
# A client that polls looks again after a tenth of the time it has waited so far.
MIN_POLL_MS, MAX_POLL_MS = 100, 5_000
MAX_ITEMS = 100


@router.post("", openapi_extra=takes(CreateResponse), responses=gives(ResponseShown, EVENT_STREAM))
async def create(
    request: Request, services: ServicesDep, caller: Submitter, retry: Retry
) -> Response:
    """The response when it is over; with `stream` its events; with `background` at once."""
    asked = await read_json_object(request, partial(read_asked, CreateResponse, caller))
    parsed = asked.parsed
    generation = await with_conversation(services, caller, parsed, asked.generation)
    if parsed.stream or not parsed.background:
        await may_wait(request, services, caller)
    asked = replace(asked, generation=generation)
    admitted = await submit(request, services, caller, asked, retry)
    headers = answer_headers(admitted, asked)
    job = await shown_job(services, caller, admitted, asked.known)
    if parsed.stream:
        fold = ResponseFold(job)
        return stream_of(services, job, fold, cursor=NOTHING_SEEN, headers=headers)
    if parsed.background:
        return await answer(
            services, job.row, lambda: response_object(job), headers=headers | _poll_headers(job)
        )
    return await answer_when_over(
        services, caller, job, request=request, show=response_object, headers=headers
    )


@router.post("/input_tokens", openapi_extra=takes(CountInput), responses=gives(InputTokens))
async def input_tokens(request: Request, services: ServicesDep, caller: Submitter) -> Response:
    """How many tokens a request would have as input. Nothing is kept."""
    parsed, generation = await read_json_object(request, _count_input)
    generation = await with_conversation(services, caller, parsed, generation)
    if parsed.model is None:
        generation = replace(generation, model=await _previous_model(services, caller, parsed))
    [num_tokens] = await services.admission.count_tokens(caller, generation)
    return JsonResponse({"object": "response.input_tokens", "input_tokens": num_tokens})


@router.get("/{response_id}", responses=gives(ResponseShown, EVENT_STREAM))
async def get(
    request: Request,
    services: ServicesDep,
    caller: JobsReader,
    response_id: str,
    *,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=0, le=MAX_SEQ)] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """The response as it is now, or its events behind a number on, at any replica."""
    if stream:
        await may_wait(request, services, caller)
    job = await _find(services, caller, response_id)
    if not stream:
        return await answer(
            services, job.row, lambda: response_object(job), headers=_poll_headers(job)
        )
    cursor = cursor_of(last_event_id, starting_after, start=NOTHING_SEEN)
    if cursor != NOTHING_SEEN:
        await _check_history(services, caller, job)
    return stream_of(services, job, ResponseFold(job), cursor=cursor)


@router.post("/{response_id}/cancel", responses=gives(ResponseShown))
async def cancel(
    request: Request, services: ServicesDep, caller: Submitter, response_id: str
) -> Response:
    """End a response in the background. Answers with it once it is over, again and again."""
    job = await _find(services, caller, response_id)
    if not job.row["is_background"]:
        raise InvalidRequest("Only responses made with 'background' can be cancelled.")
    row = await cancel_and_wait(services, caller, job.id, request)
    return await answer(services, row, lambda: response_object(job.with_row(row)))


@router.delete("/{response_id}", responses=gives(ResponseDeleted))
async def delete(
    services: ServicesDep, caller: Submitter, response_id: str, turn: TurnDep
) -> Response:
    """Delete what was asked and answered; one that runs is cancelled first."""
    job = await _find(services, caller, response_id)
    await deleting.delete(services, caller, job.row, turn)
    return deleting.deleted(response_id, "response")


@router.get("/{response_id}/input_items", responses=gives(Page[dict[str, Any]]))
async def input_items(
    services: ServicesDep,
    caller: JobsReader,
    response_id: str,
    *,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_ITEMS)] = 20,
) -> Response:
    """What was asked, item by item."""
    job = await _find(services, caller, response_id)
    if "input" not in job.request:  # what was asked may be kept for a shorter time
        raise not_found(Dialect.RESPONSE)

    page = await services.long_work.run(_items, job, order == "asc", after, limit + 1)
    ids = [item["id"] for item in page if item["type"] == REFERENCE]
    named = await find_kept(services, caller, ids) if ids else {}

    def show() -> Response:
        items = [
            _item(named[item["id"]]) | {"id": item["id"]} if item["id"] in named else item
            for item in page
        ]
        return page_of(items, limit=limit)

    return await services.long_work.run(show)


async def _find(services: Services, caller: ApiKey, response_id: str) -> ShownJob:
    """Raises JobNotFound, for what was not to be stored too."""
    job = await find_shown_job(services, caller, response_id, RESPONSE_PREFIX, Dialect.RESPONSE)
    if not job.is_stored:
        raise not_found(Dialect.RESPONSE)
    return job


async def _check_history(services: Services, caller: ApiKey, job: ShownJob) -> None:
    """Raise StreamExpired where a resumed stream could only be made up."""
    if not is_terminal(job.row) or not job.row["last_seq"]:
        return
    is_kept = await has_event_log(services.pool, caller.tenant_id, job.id)
    if not is_kept and not await read_log(services.redis, job.id, 0, 1):
        raise StreamExpired


def _poll_headers(job: ShownJob) -> dict[str, str]:
    """When a stock client that polls is to look again."""
    if is_terminal(job.row):
        return {}
    age_ms = job.row["age_s"] * 1000
    return {"openai-poll-after-ms": str(round(min(max(age_ms / 10, MIN_POLL_MS), MAX_POLL_MS)))}


async def _previous_model(services: Services, caller: ApiKey, parsed: CountInput) -> str:
    if parsed.previous_response_id is None:
        raise InvalidRequest("Give 'model'.", param="model")
    return str((await _find(services, caller, parsed.previous_response_id)).row["model"])


def _count_input(body: Mapping[str, Any]) -> tuple[CountInput, Generation]:
    parsed = parse_body(CountInput, body)
    return parsed, parsed.generation()


def _items(
    job: ShownJob, is_ascending: bool, after: str | None, limit: int
) -> list[dict[str, Any]]:
    """What was asked, item by item, behind one of them. Raises InvalidRequest."""
    items = items_of(job.request["input"])
    ids = [_item_id(job, n, item) for n, item in enumerate(items)]
    places = list(range(len(items)) if is_ascending else reversed(range(len(items))))
    if after is not None:
        if after not in ids:
            raise InvalidRequest("'after' is not the id of an item.", param="after")
        places = places[places.index(ids.index(after)) + 1 :]
    return [_item(items[n]) | {"id": ids[n]} for n in places[:limit]]


def _item_id(job: ShownJob, number: int, item: InputItem) -> str:
    prefix = {"message": "msg_in_", "function_call": "fc_in_"}.get(item.type, "fco_in_")
    return item.id or format_job_id(job.id, prefix) + f"{number:04x}"


def _item(item: InputItem) -> dict[str, Any]:
    fields = item.model_dump(exclude_none=True)
    fields["status"] = "completed"
    if item.type == "function_call_output":
        fields["output"] = "\n".join(part.text for part in item.output or ())
    if item.content is not None:
        kind = "output_text" if item.role == "assistant" else "input_text"
        extra: dict[str, Any] = {"annotations": []} if kind == "output_text" else {}
        fields["content"] = [{"type": kind, "text": part.text, **extra} for part in item.content]
    return fields
