"""What all routes that create jobs share: parse, submit, and answer as an object or a stream."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Header, Request
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from api.admission import Accepted, Submission, request_hash
from api.answering import answer
from api.deps import IdempotencyKey, find_job, may_wait
from api.dialects.fold import Fold, ShownJob
from api.errors import invalid_request
from api.generation import Generation
from api.json_body import read_json_object
from api.limits.answers import rate_headers
from api.prompts.vocabulary import Vocabulary
from api.schemas.chat import CreateChatCompletion, WaitingFields
from api.schemas.completions import CreateCompletion
from api.schemas.jobs import CreateJob
from api.schemas.responses import CreateResponse
from api.schemas.strict import ignored_fields, known_fields
from api.services import Services
from api.settings import STREAM_GRACE_S
from api.streams.encoder import DialectEncoder, Encoder
from api.streams.reader import Reader
from api.streams.sse import EventStreamResponse
from api.waiting import wait_with_client, wait_without_turn
from store.admission import Admitted
from store.jobs import JobRow
from store.tenants import ApiKey
from tasks.errors import ServiceError, ServiceUnavailable
from tasks.ids import format_job_id

M = TypeVar("M", bound=BaseModel)
B = TypeVar("B", bound=CreateJob | CreateChatCompletion | CreateCompletion | CreateResponse)
CompletionBody = CreateChatCompletion | CreateCompletion

IGNORED_HEADER = "x-millrace-ignored"
JOB_HEADER = "x-millrace-job-id"
MAX_NAMED = 20  # ignored fields in the header
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


@dataclass(frozen=True, slots=True)
class Repetition:
    """What a request says of requests before it."""

    idempotency_key: str | None
    num_retries: int  # as the client's library counts them


async def _repetition(
    idempotency_key: IdempotencyKey,
    x_stainless_retry_count: Annotated[str | None, Header()] = None,
) -> Repetition:
    count = x_stainless_retry_count or ""
    return Repetition(idempotency_key, int(count) if count.isdecimal() and len(count) < 4 else 0)


Retry = Annotated[Repetition, Depends(_repetition)]


def parse_body(model: type[M], body: Mapping[str, Any]) -> M:
    """A body as its schema. Raises InvalidRequest, which names the first mistake."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise invalid_request(error) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked(Generic[B]):
    """A body, and what is made of it before anybody is asked. Bodies of a MiB take 100 ms."""

    parsed: B
    generation: Generation
    known: Mapping[str, Any]  # the fields of the body that its schema knows
    ignored: str | None  # names of what has no effect, for a header
    request_hash: bytes


def read_asked(schema: type[B], caller: ApiKey, body: Mapping[str, Any]) -> Asked[B]:
    """Raises InvalidRequest and its like."""
    parsed = parse_body(schema, body)
    generation = parsed.generation()
    return Asked(
        parsed=parsed,
        generation=generation,
        known=known_fields(schema, body),
        ignored=_ignored({*ignored_fields(schema, body), *without_effect(parsed)}),
        request_hash=request_hash(generation.path, caller.tenant_id, body),
    )


async def submit(
    request: Request, services: Services, caller: ApiKey, asked: Asked[Any], retry: Repetition
) -> Accepted:
    """Commit a job, or find the one that an earlier try of the same request made. Raises ClientLeft
    for who goes while there is something to wait for.
    """
    return await services.admission.submit(
        Submission(
            key=caller,
            generation=asked.generation,
            request_hash=asked.request_hash,
            known=asked.known,
            idempotency_key=retry.idempotency_key,
            is_retry=bool(
                retry.num_retries and retry.idempotency_key is None and caller.attach_retries
            ),
            wait=partial(wait_without_turn, request),
        )
    )


def job_headers(accepted: Accepted, asked: Asked[Any]) -> dict[str, str]:
    """Whether an earlier request made the job, what is left of the tenant's rate limits, and what
    of the request was ignored.
    """
    replayed = {} if accepted.is_new else {"Idempotency-Replayed": "true"}
    ignored = {} if asked.ignored is None else {IGNORED_HEADER: asked.ignored}
    return replayed | rate_headers(accepted.standing) | ignored


def answer_headers(accepted: Accepted, asked: Asked[Any]) -> dict[str, str]:
    """The same, and which job it is."""
    return {JOB_HEADER: format_job_id(accepted.job_id)} | job_headers(accepted, asked)


def without_effect(parsed: BaseModel) -> Iterator[str]:
    """What a body asks for and no text model does."""
    return parsed.ignored() if isinstance(parsed, WaitingFields) else iter(())


def _ignored(names: Set[str]) -> str | None:
    """Names come from the client: only those that can stand in a header."""
    if not names:
        return None
    usable = sorted(name for name in names if _NAME.fullmatch(name))
    return ", ".join(usable[:MAX_NAMED]) or "unnamed"


async def shown_job(
    services: Services, caller: ApiKey, admitted: Admitted, known: Mapping[str, Any]
) -> ShownJob:
    """The job of a request that was just admitted."""
    row = admitted.row or await find_job(services, caller, admitted.job_id)
    return ShownJob(row, known, vocabulary_of(services, row))


def vocabulary_of(services: Services, row: JobRow) -> Vocabulary | None:
    """Of the job's model; None once the catalog doesn't have it any more."""
    model = services.registry.find(row["model"])
    return model.codec.vocabulary if model else None


async def answer_when_over(
    services: Services,
    caller: ApiKey,
    job: ShownJob,
    *,
    request: Request,
    show: Callable[[ShownJob], dict[str, Any]],
    headers: Mapping[str, str],
) -> Response:
    """The finished job as one object; waits as long as the client does."""
    row = await wait_with_client(services, caller, job.id, request)
    try:
        return await answer(services, row, lambda: show(job.with_row(row)), headers=headers)
    except ServiceError as error:
        error.headers = dict(headers)
        raise


async def complete(
    services: Services,
    caller: ApiKey,
    request: Request,
    retry: Repetition,
    *,
    schema: type[CompletionBody],
    fold: Callable[[ShownJob], Fold],
    show: Callable[[ShownJob], dict[str, Any]],
) -> Response:
    """A completion of either kind: the whole of it, or with `stream` its chunks."""
    asked = await read_json_object(request, partial(read_asked, schema, caller))
    await may_wait(request, services, caller)
    accepted = await submit(request, services, caller, asked, retry)
    headers = answer_headers(accepted, asked)
    job = await shown_job(services, caller, accepted, asked.known)
    if asked.parsed.stream:
        return stream_of(services, job, fold(job), cursor=0, headers=headers)
    return await answer_when_over(
        services, caller, job, request=request, show=show, headers=headers
    )


def stream_of(
    services: Services,
    job: ShownJob,
    fold: Fold,
    *,
    cursor: int,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A dialect's stream from behind a frame on. Raises ServiceUnavailable."""
    # The fold needs every event from the first on, whatever the client has.
    return event_stream(services, job.row, DialectEncoder(fold, cursor), cursor=0, headers=headers)


def event_stream(
    services: Services,
    row: JobRow,
    encoder: Encoder,
    *,
    cursor: int,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A job's events behind a number on, until its end. Raises ServiceUnavailable."""
    try:
        services.streams.check_room()
    except ServiceUnavailable as error:
        error.headers = dict(headers or {})
        raise
    return EventStreamResponse(
        hub=services.hub,
        streams=services.streams,
        reader=Reader(services.sources, row, cursor),
        encoder=encoder,
        max_age_s=max(0.0, row["remaining_s"]) + STREAM_GRACE_S,
        headers=headers,
        on_left=lambda: services.canceller.client_left(row),
    )
