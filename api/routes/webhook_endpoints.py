"""Webhook endpoints, as OpenAI has them: where a tenant is told of the end of background responses
and batches.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.deps import ServicesDep, WebhookWriter
from api.job_view import unix_time
from api.json_body import read_json_object
from api.json_response import JsonResponse, page_of
from api.limits.unpaid import Unpaid
from api.openapi import gives, takes
from api.schemas.objects import Page
from api.schemas.webhooks import (
    CreateWebhookEndpoint,
    RotateSecret,
    SampleEvent,
    UpdateWebhookEndpoint,
    WebhookEndpointDeleted,
    WebhookEndpointShown,
    WebhookEventTypesShown,
    WebhookTestShown,
)
from api.services import Services
from api.submitting import parse_body
from store import webhooks
from store.tenants import ApiKey
from tasks.errors import InvalidRequest, ServiceUnavailable, WebhookNotFound
from tasks.ids import ENDPOINT_PREFIX, format_job_id, parse_job_id, uuid7
from tasks.webhook_events import WEBHOOK_EVENTS
from tasks.webhook_urls import RefusedAddress

router = APIRouter(prefix="/v1")

MAX_PAGE = 100
SECRET_BYTES = 32
SECRET_PREFIX = "whsec_"
KEEP_H = 24  # an old secret, where that is asked for
# A sample is sent within a second, and answered within ten or not at all.
SAMPLE_WAIT_S = 15.0
SAMPLE_LOOK_S = 0.2

Shown = dict[str, Any]


@router.get("/webhook_event_types", responses=gives(WebhookEventTypesShown))
async def list_event_types(_caller: WebhookWriter) -> Response:
    """What an endpoint may be told of."""
    return JsonResponse({"object": "list", "data": WEBHOOK_EVENTS})


@router.post(
    "/webhook_endpoints",
    openapi_extra=takes(CreateWebhookEndpoint),
    responses=gives(WebhookEndpointShown),
)
async def create(request: Request, services: ServicesDep, caller: WebhookWriter) -> Response:
    """An endpoint. Its secret is in this answer and in no other."""
    asked = await read_json_object(request, partial(parse_body, CreateWebhookEndpoint))
    _check_url(services, asked.url)
    secret = secrets.token_bytes(SECRET_BYTES)
    new = {
        "id": uuid7(),
        "name": asked.name,
        "url": asked.url,
        "event_types": asked.event_types,
        "secret": secret,
        "secret_hint": _hint(secret),
    }
    row = await webhooks.create_endpoint(services.pool, caller.tenant_id, new)
    if row is None:
        raise InvalidRequest(f"You have {webhooks.MAX_ENDPOINTS} webhook endpoints already.")
    return JsonResponse(endpoint_object(row) | {"signing_secret": _secret_text(secret)})


@router.get("/webhook_endpoints", responses=gives(Page[WebhookEndpointShown]))
async def list_(
    services: ServicesDep,
    caller: WebhookWriter,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
) -> Response:
    """Newest first."""
    after_id = parse_job_id(after, ENDPOINT_PREFIX) if after is not None else None
    if after is not None and after_id is None:
        raise InvalidRequest("'after' must be the id of an endpoint.", param="after")
    rows = await webhooks.list_endpoints(
        services.pool, caller.tenant_id, after=after_id, limit=limit + 1
    )
    return page_of([endpoint_object(row) for row in rows], limit=limit)


@router.get("/webhook_endpoints/{endpoint_id}", responses=gives(WebhookEndpointShown))
async def get(services: ServicesDep, caller: WebhookWriter, endpoint_id: str) -> Response:
    """One endpoint, and whether it is still sent to."""
    return JsonResponse(endpoint_object(await find_endpoint(services, caller, endpoint_id)))


@router.post(
    "/webhook_endpoints/{endpoint_id}",
    openapi_extra=takes(UpdateWebhookEndpoint),
    responses=gives(WebhookEndpointShown),
)
async def update(
    request: Request, services: ServicesDep, caller: WebhookWriter, endpoint_id: str
) -> Response:
    """Change what is given. An endpoint that was switched off can be switched on again."""
    asked = await read_json_object(request, partial(parse_body, UpdateWebhookEndpoint))
    if asked.url is not None:
        _check_url(services, asked.url)
    changes = asked.model_dump(exclude_none=True)
    if "enabled" in changes:
        changes["is_enabled"] = changes.pop("enabled")
    row = await webhooks.update_endpoint(
        services.pool, caller.tenant_id, parse_endpoint_id(endpoint_id), changes
    )
    return JsonResponse(endpoint_object(found(row)))


@router.delete("/webhook_endpoints/{endpoint_id}", responses=gives(WebhookEndpointDeleted))
async def delete(services: ServicesDep, caller: WebhookWriter, endpoint_id: str) -> Response:
    """Nothing more is sent there."""
    parsed = parse_endpoint_id(endpoint_id)
    if not await webhooks.delete_endpoint(services.pool, caller.tenant_id, parsed):
        raise WebhookNotFound
    return JsonResponse({"id": endpoint_id, "object": "webhook_endpoint.deleted", "deleted": True})


@router.post(
    "/webhook_endpoints/{endpoint_id}/rotate_secret",
    openapi_extra=takes(RotateSecret),
    responses=gives(WebhookEndpointShown),
)
async def rotate_secret(
    request: Request, services: ServicesDep, caller: WebhookWriter, endpoint_id: str
) -> Response:
    """A new secret. What is sent is signed with the one before it as well, if that is asked for."""
    asked = await read_json_object(request, partial(parse_body, RotateSecret))
    secret = secrets.token_bytes(SECRET_BYTES)
    row = await webhooks.rotate_secret(
        services.pool,
        caller.tenant_id,
        parse_endpoint_id(endpoint_id),
        secret=secret,
        hint=_hint(secret),
        keep_h=KEEP_H if asked.keep_old_secret_active_for_24_hours else 0,
    )
    return JsonResponse(endpoint_object(found(row)) | {"signing_secret": _secret_text(secret)})


@router.post(
    "/webhook_endpoints/{endpoint_id}/test",
    openapi_extra=takes(SampleEvent),
    responses=gives(WebhookTestShown),
)
async def test(
    request: Request, services: ServicesDep, caller: WebhookWriter, endpoint_id: str
) -> Response:
    """Send a sample, once, and say what the endpoint answered."""
    asked = await read_json_object(request, partial(parse_body, SampleEvent))
    kind = asked.event_type.partition(".")[0]
    sample_id = format_job_id(UUID(int=0), {"response": "resp_", "batch": "batch_"}[kind])
    async with services.unpaid.one(caller.tenant_id, Unpaid.WEBHOOK_TESTS):
        row = await webhooks.add_sample(
            services.pool,
            caller.tenant_id,
            parse_endpoint_id(endpoint_id),
            type=asked.event_type,
            object_id=sample_id,
        )
        delivery = found(row)
    status_code = await _answered(services, caller, delivery)
    return JsonResponse(
        {
            "object": "webhook_endpoint.test",
            "webhook_endpoint_id": endpoint_id,
            "event_type": asked.event_type,
            "status_code": status_code,
            "success": True,
        }
    )


async def _answered(services: Services, caller: ApiKey, delivery: webhooks.Row) -> int:
    """The status that a sample was answered with. Raises InvalidRequest for no answer at all, and
    ServiceUnavailable if nobody sent it.
    """
    try:
        async with asyncio.timeout(SAMPLE_WAIT_S):
            while delivery["last_status_code"] is None and delivery["last_error"] is None:
                await asyncio.sleep(SAMPLE_LOOK_S)
                row = await webhooks.get_delivery(services.pool, caller.tenant_id, delivery["id"])
                delivery = found(row)
    except TimeoutError:
        raise ServiceUnavailable("The sample has not been sent yet.") from None
    if delivery["last_status_code"] is None:
        raise InvalidRequest(f"The endpoint gave no answer. {delivery['last_error']}")
    return int(delivery["last_status_code"])


def endpoint_object(row: webhooks.Row) -> Shown:
    """An endpoint as clients see it."""
    return {
        "id": format_job_id(row["id"], ENDPOINT_PREFIX),
        "object": "webhook_endpoint",
        "name": row["name"],
        "url": row["url"],
        "event_types": row["event_types"],
        "signing_secret_hint": row["secret_hint"],
        "created_at": unix_time(row["created_at"]),
        "updated_at": unix_time(row["updated_at"]),
        "enabled": row["is_enabled"],
        "disabled_reason": row["disabled_reason"],
    }


async def find_endpoint(services: Services, caller: ApiKey, endpoint_id: str) -> webhooks.Row:
    """The caller's endpoint. Raises WebhookNotFound."""
    parsed = parse_endpoint_id(endpoint_id)
    return found(await webhooks.get_endpoint(services.pool, caller.tenant_id, parsed))


def found(row: webhooks.Row | None) -> webhooks.Row:
    """Raises WebhookNotFound."""
    if row is None:
        raise WebhookNotFound
    return row


def parse_endpoint_id(text: str) -> UUID:
    """An id that can't be one is answered like one that isn't there."""
    parsed = parse_job_id(text, ENDPOINT_PREFIX)
    if parsed is None:
        raise WebhookNotFound
    return parsed


def _check_url(services: Services, url: str) -> None:
    try:
        services.webhook_urls.check_url(url)
    except RefusedAddress as error:
        raise InvalidRequest(str(error), param="url") from None


def _secret_text(secret: bytes) -> str:
    return SECRET_PREFIX + base64.b64encode(secret).decode()


def _hint(secret: bytes) -> str:
    """By which its owner recognises a secret."""
    return f"{SECRET_PREFIX}...{_secret_text(secret)[-4:]}"
