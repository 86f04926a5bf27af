"""Webhooks: where a tenant is told of the end of background responses and batches."""

from __future__ import annotations

import base64
import secrets
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.deps import ServicesDep, WebhookWriter
from api.job_view import unix_time
from api.json_body import read_json_object
from api.json_response import JsonResponse, page_of
from api.openapi import gives, takes
from api.schemas.objects import Page
from api.schemas.webhooks import (
    CreateWebhook,
    DeliveryShown,
    UpdateWebhook,
    WebhookDeleted,
    WebhookShown,
)
from api.services import Services
from api.submitting import parse_body
from store import webhooks
from store.tenants import ApiKey
from tasks.errors import InvalidRequest, WebhookNotFound
from tasks.ids import (
    DELIVERY_PREFIX,
    ENDPOINT_PREFIX,
    EVENT_PREFIX,
    format_job_id,
    parse_job_id,
    uuid7,
)
from tasks.webhook_events import TEST_EVENT
from tasks.webhook_urls import RefusedAddress

router = APIRouter(prefix="/v1/webhooks")

MAX_PAGE = 100
SECRET_BYTES = 32
SECRET_PREFIX = "whsec_"

After = Annotated[str | None, Query(max_length=64)]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]


@router.post("", openapi_extra=takes(CreateWebhook), responses=gives(WebhookShown))
async def create(request: Request, services: ServicesDep, caller: WebhookWriter) -> Response:
    """An endpoint. Its secret is in this answer and in no other."""
    asked = parse_body(CreateWebhook, await read_json_object(request))
    _check_url(services, asked.url)
    secret = secrets.token_bytes(SECRET_BYTES)
    new = {
        "id": uuid7(),
        "url": asked.url,
        "events": asked.events or [],
        "description": asked.description,
    }
    row = await webhooks.create_endpoint(services.pool, caller.tenant_id, new, secret=secret)
    if row is None:
        raise InvalidRequest(f"You have {webhooks.MAX_ENDPOINTS} webhook endpoints already.")
    return JsonResponse(endpoint_object(row) | {"secret": _secret_text(secret)})


@router.get("", responses=gives(Page[WebhookShown]))
async def list_(
    services: ServicesDep, caller: WebhookWriter, after: After = None, limit: Limit = 20
) -> Response:
    """Newest first."""
    rows = await webhooks.list_endpoints(
        services.pool,
        caller.tenant_id,
        after=_after(after, ENDPOINT_PREFIX),
        limit=limit + 1,
    )
    return page_of([endpoint_object(row) for row in rows], limit=limit)


@router.get("/{webhook_id}", responses=gives(WebhookShown))
async def get(services: ServicesDep, caller: WebhookWriter, webhook_id: str) -> Response:
    """One endpoint, and whether it is still sent to."""
    return JsonResponse(endpoint_object(await _find(services, caller, webhook_id)))


@router.post("/{webhook_id}", openapi_extra=takes(UpdateWebhook), responses=gives(WebhookShown))
async def update(
    request: Request, services: ServicesDep, caller: WebhookWriter, webhook_id: str
) -> Response:
    """Change what is given. An endpoint that was switched off can be switched on again."""
    asked = parse_body(UpdateWebhook, await read_json_object(request))
    changes = _changes(asked)
    if "url" in changes:
        _check_url(services, changes["url"])
    row = await webhooks.update_endpoint(
        services.pool, caller.tenant_id, _parse(webhook_id), changes
    )
    return JsonResponse(endpoint_object(_found(row)))


@router.delete("/{webhook_id}", responses=gives(WebhookDeleted))
async def delete(services: ServicesDep, caller: WebhookWriter, webhook_id: str) -> Response:
    """Nothing more is sent there."""
    if not await webhooks.delete_endpoint(services.pool, caller.tenant_id, _parse(webhook_id)):
        raise WebhookNotFound
    return JsonResponse({"id": webhook_id, "object": "webhook_endpoint", "deleted": True})


@router.post("/{webhook_id}/rotate_secret", responses=gives(WebhookShown))
async def rotate_secret(services: ServicesDep, caller: WebhookWriter, webhook_id: str) -> Response:
    """A new secret. For 24 hours what is sent is signed with the one before it as well."""
    secret = secrets.token_bytes(SECRET_BYTES)
    row = await webhooks.update_endpoint(
        services.pool, caller.tenant_id, _parse(webhook_id), {"secret": secret}
    )
    return JsonResponse(endpoint_object(_found(row)) | {"secret": _secret_text(secret)})


@router.post("/{webhook_id}/test", responses=gives(DeliveryShown))
async def test(services: ServicesDep, caller: WebhookWriter, webhook_id: str) -> Response:
    """Send an event of the type `webhook.test`, which names the endpoint itself."""
    row = await webhooks.add_event(
        services.pool,
        caller.tenant_id,
        _parse(webhook_id),
        type=TEST_EVENT,
        object_id=webhook_id,
    )
    return JsonResponse(delivery_object(_found(row)))


@router.get("/{webhook_id}/deliveries", responses=gives(Page[DeliveryShown]))
async def list_deliveries(
    services: ServicesDep,
    caller: WebhookWriter,
    webhook_id: str,
    *,
    status: Literal["pending", "delivered", "failed"] | None = None,
    after: After = None,
    limit: Limit = 20,
) -> Response:
    """Newest first; they are kept for 30 days."""
    endpoint = await _find(services, caller, webhook_id)
    rows = await webhooks.list_deliveries(
        services.pool,
        caller.tenant_id,
        endpoint["id"],
        status=status,
        after=_after(after, DELIVERY_PREFIX),
        limit=limit + 1,
    )
    return page_of([delivery_object(row) for row in rows], limit=limit)


@router.post("/{webhook_id}/deliveries/{delivery_id}/resend", responses=gives(DeliveryShown))
async def resend(
    services: ServicesDep, caller: WebhookWriter, webhook_id: str, delivery_id: str
) -> Response:
    """Send an event once more, under the same event id, delivered or not."""
    row = await webhooks.resend(
        services.pool,
        caller.tenant_id,
        _parse(webhook_id),
        _parse(delivery_id, DELIVERY_PREFIX),
    )
    return JsonResponse(delivery_object(_found(row)))


def endpoint_object(row: webhooks.Row) -> dict[str, Any]:
    """An endpoint as clients see it."""
    return {
        "id": format_job_id(row["id"], ENDPOINT_PREFIX),
        "object": "webhook_endpoint",
        "url": row["url"],
        "events": row["events"] or None,
        "description": row["description"],
        "enabled": row["is_enabled"],
        "disabled_reason": row["disabled_reason"],
        "created_at": unix_time(row["created_at"]),
    }


def delivery_object(row: webhooks.Row) -> dict[str, Any]:
    """A delivery as clients see it."""
    over = "delivered" if row["delivered_at"] else "failed"
    return {
        "id": format_job_id(row["id"], DELIVERY_PREFIX),
        "object": "webhook_delivery",
        "webhook_id": format_job_id(row["endpoint_id"], ENDPOINT_PREFIX),
        "event_id": format_job_id(row["event_id"], EVENT_PREFIX),
        "event_type": row["type"],
        "object_id": row["object_id"],
        "status": "pending" if row["next_attempt_at"] else over,
        "attempts": row["attempts"],
        "next_attempt_at": unix_time(row["next_attempt_at"]),
        "last_status_code": row["last_status_code"],
        "last_error": row["last_error"],
        "created_at": unix_time(row["created_at"]),
        "delivered_at": unix_time(row["delivered_at"]),
    }


def _changes(asked: UpdateWebhook) -> dict[str, Any]:
    """Columns to set. Null stands for something with `events` and `description` alone."""
    changes: dict[str, Any] = {}
    if asked.url is not None:
        changes["url"] = asked.url
    if "events" in asked.model_fields_set:
        changes["events"] = asked.events or []
    if "description" in asked.model_fields_set:
        changes["description"] = asked.description
    if asked.enabled is not None:
        changes["is_enabled"] = asked.enabled
    return changes


def _check_url(services: Services, url: str) -> None:
    try:
        services.webhook_urls.check_url(url)
    except RefusedAddress as error:
        raise InvalidRequest(str(error), param="url") from None


async def _find(services: Services, caller: ApiKey, webhook_id: str) -> webhooks.Row:
    row = await webhooks.get_endpoint(services.pool, caller.tenant_id, _parse(webhook_id))
    return _found(row)


def _found(row: webhooks.Row | None) -> webhooks.Row:
    if row is None:
        raise WebhookNotFound
    return row


def _parse(text: str, prefix: str = ENDPOINT_PREFIX) -> UUID:
    """An id that can't be one is answered like one that isn't there."""
    parsed = parse_job_id(text, prefix)
    if parsed is None:
        raise WebhookNotFound
    return parsed


def _after(text: str | None, prefix: str) -> UUID | None:
    parsed = parse_job_id(text, prefix) if text is not None else None
    if text is not None and parsed is None:
        raise InvalidRequest("'after' must be the last id of the page before.", param="after")
    return parsed


def _secret_text(secret: bytes) -> str:
    return SECRET_PREFIX + base64.b64encode(secret).decode()
