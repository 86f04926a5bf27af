"""What all routes that create jobs share: parse, submit, and answer as an object or a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from api.admission import Accepted, Submission
from api.answering import answer
from api.deps import IdempotencyKey, find_job, may_wait
from api.dialects.fold import Fold, ShownJob
from api.errors import invalid_request
from api.generation import Generation
from api.json_body import read_json_object
from api.limits.answers import rate_headers
from api.prompts.vocabulary import Vocabulary
from api.schemas.chat import CreateChatCompletion
from api.schemas.completions import CreateCompletion
from api.schemas.strict import known_fields, unknown_fields
from api.services import Services
from api.settings import STREAM_GRACE_S
from api.streams.encoder import DialectEncoder, Encoder
from api.streams.reader import Reader
from api.streams.sse import EventStreamResponse
from api.waiting import wait_with_client
from store.admission import Admitted
from store.jobs import JobRow
from store.tenants import ApiKey
from tasks.errors import ServiceError, ServiceUnavailable
from tasks.ids import format_job_id

B = TypeVar("B", bound=BaseModel)
CompletionBody = CreateChatCompletion | CreateCompletion

IGNORED_HEADER = "x-millrace-ignored"
JOB_HEADER = "x-millrace-job-id"
MAX_NAMED = 20  # ignored fields in the header


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


def parse_body(model: type[B], body: Mapping[str, Any]) -> B:
    """A body as its schema. Raises InvalidRequest, which names the first mistake."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise invalid_request(error) from None


async def submit(
    services: Services,
    caller: ApiKey,
    generation: Generation,
    body: Mapping[str, Any],
    *,
    known: Mapping[str, Any],
    retry: Repetition,
) -> Accepted:
    """Commit a job, or find the one that an earlier try of the same request made. `known` are the
    fields of the body that its schema knows.
    """
    return await services.admission.submit(
        Submission(
            key=caller,
            generation=generation,
            body=body,
            known=known,
            idempotency_key=retry.idempotency_key,
            is_retry=bool(
                retry.num_retries and retry.idempotency_key is None and caller.attach_retries
            ),
        )
    )


def job_headers(accepted: Accepted) -> dict[str, str]:
    """Whether an earlier request made the job, and what is left of the tenant's rate limits."""
    replayed = {} if accepted.is_new else {"Idempotency-Replayed": "true"}
    return replayed | rate_headers(accepted.standing)


def answer_headers(
    accepted: Accepted, model: type[BaseModel], body: Mapping[str, Any]
) -> dict[str, str]:
    """The same, which job it is, and what of the request was ignored."""
    headers = {JOB_HEADER: format_job_id(accepted.job_id)} | job_headers(accepted)
    if ignored := unknown_fields(model, body):
        # Names come from the client: only those that can stand in a header.
        names = [name for name in ignored if name.isidentifier() and name.isascii()]
        headers[IGNORED_HEADER] = ", ".join(names[:MAX_NAMED]) or "unnamed"
    return headers


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
    body = await read_json_object(request)
    parsed = parse_body(schema, body)
    may_wait(request, services, caller)
    known = known_fields(schema, body)
    accepted = await submit(services, caller, parsed.generation(), body, known=known, retry=retry)
    headers = answer_headers(accepted, schema, body)
    job = await shown_job(services, caller, accepted, known)
    if parsed.stream:
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
