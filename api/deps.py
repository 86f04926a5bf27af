"""What routes ask for, as annotated aliases. All coroutines: FastAPI sends others to a thread."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Header, Path, Query, Request

from api.auth import require
from api.limits.places import Places
from api.limits.turns import Turn, give_back_turn
from api.services import Services
from api.settings import MAX_WAIT_S
from store.api_keys import Scope
from store.jobs import JobRow, get_job
from store.tenants import ApiKey
from tasks.errors import (
    FileMissing,
    InvalidApiKey,
    InvalidRequest,
    JobNotFound,
    RateLimitExceeded,
)
from tasks.ids import parse_file_id, parse_job_id

MAX_IDEMPOTENCY_KEY = 255


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]


async def _authenticated(request: Request, services: Services, authorization: str | None) -> ApiKey:
    try:
        return await services.authenticator.authenticate(authorization)
    except InvalidApiKey:
        give_back_turn(request.scope["state"])
        await services.refusals.turn_without_key()
        raise


async def _take_place(request: Request, services: Services, places: Places, key: ApiKey) -> None:
    """For as long as the request is open."""
    try:
        request.state.held.enter_context(places.take(key))
    except RateLimitExceeded:
        give_back_turn(request.scope["state"])
        await services.refusals.turn(key.tenant_id)
        raise


async def _caller(
    request: Request,
    services: ServicesDep,
    # In the document it is the security scheme, see api/openapi.py.
    authorization: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> ApiKey:
    key = await _authenticated(request, services, authorization)
    turn: Turn = request.state.turn
    turn.belong_to(key.tenant_id)
    await _take_place(request, services, services.open_requests, key)
    request.state.bodies = services.large_bodies.of(key.tenant_id)
    if _reads_body(request):
        turn.give_back()
    else:
        await turn.take()
    return key


def _reads_body(request: Request) -> bool:
    """Whether the route does: it says so in the document. Others let lie what is sent."""
    return "requestBody" in (request.scope["route"].openapi_extra or {})


# A valid key, whatever it may do.
Caller = Annotated[ApiKey, Depends(_caller)]


async def _turn(request: Request) -> Turn:
    turn: Turn = request.state.turn
    return turn


# For a route that waits for something: nobody else of the tenant's has to wait for the same.
TurnDep = Annotated[Turn, Depends(_turn)]


async def _submitter(caller: Caller) -> ApiKey:
    require(caller, Scope.INFER_WRITE)
    return caller


async def _jobs_reader(caller: Caller) -> ApiKey:
    require(caller, Scope.JOBS_READ)
    return caller


async def _usage_reader(caller: Caller) -> ApiKey:
    require(caller, Scope.USAGE_READ)
    return caller


async def _webhook_writer(caller: Caller) -> ApiKey:
    require(caller, Scope.WEBHOOKS_WRITE)
    return caller


async def may_wait(request: Request, services: Services, caller: ApiKey) -> None:
    """To be called by what may hold its connection until a job's end, before anything is admitted.

    Raises RateLimitExceeded if too many of the caller's do.
    """
    await _take_place(request, services, services.waiting_requests, caller)


async def _waits(request: Request, services: ServicesDep, caller: Caller) -> None:
    await may_wait(request, services, caller)


# For a route that waits in any case.
WAITS = Depends(_waits)

Submitter = Annotated[ApiKey, Depends(_submitter)]
JobsReader = Annotated[ApiKey, Depends(_jobs_reader)]
UsageReader = Annotated[ApiKey, Depends(_usage_reader)]
WebhookWriter = Annotated[ApiKey, Depends(_webhook_writer)]


async def _job_id(job_id: Annotated[str, Path()]) -> UUID:
    """An id that can't be one is answered like one that isn't there."""
    parsed = parse_job_id(job_id)
    if parsed is None:
        raise JobNotFound
    return parsed


JobId = Annotated[UUID, Depends(_job_id)]


async def _file_id(file_id: Annotated[str, Path()]) -> UUID:
    """An id that can't be one is answered like one that isn't there."""
    parsed = parse_file_id(file_id)
    if parsed is None:
        raise FileMissing
    return parsed


FileId = Annotated[UUID, Depends(_file_id)]


async def find_job(services: Services, caller: ApiKey, job_id: UUID) -> JobRow:
    """The caller's job. Raises JobNotFound: another tenant's is answered like none at all, and
    so is a deleted one.
    """
    row = await get_job(services.pool, caller.tenant_id, job_id)
    if row is None or row["deleted_at"] is not None:
        raise JobNotFound
    return row


def check_is_shown(row: JobRow) -> None:
    """Raise JobNotFound for a job that is over and not to be stored: only its stream can be gone on
    with, and its request repeated, until it is deleted.
    """
    if not row["is_stored"] and row["finished_at"] is not None:
        raise JobNotFound


async def _idempotency_key(
    idempotency_key: Annotated[str | None, Header()] = None,
) -> str | None:
    """Quoted, as the draft standard has it, or bare."""
    if idempotency_key is None:
        return None
    key = idempotency_key.strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY or not (key.isascii() and key.isprintable()):
        message = f"Idempotency-Key must be 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters."
        raise InvalidRequest(message, param="Idempotency-Key")
    return key


IdempotencyKey = Annotated[str | None, Depends(_idempotency_key)]

WaitSeconds = Annotated[float, Query(ge=0, le=MAX_WAIT_S, allow_inf_nan=False)]
