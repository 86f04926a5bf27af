"""What was sent to a webhook endpoint, and is to be sent."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.responses import Response

from api.deps import ServicesDep, WebhookWriter
from api.job_view import unix_time
from api.json_response import JsonResponse, page_of
from api.openapi import gives
from api.routes.webhook_endpoints import MAX_PAGE, find_endpoint, found, parse_endpoint_id
from api.schemas.objects import Page
from api.schemas.webhooks import DeliveryShown
from store import webhooks
from tasks.errors import InvalidRequest, WebhookNotFound
from tasks.ids import (
    DELIVERY_PREFIX,
    ENDPOINT_PREFIX,
    EVENT_PREFIX,
    format_job_id,
    parse_job_id,
)

router = APIRouter(prefix="/v1/webhook_endpoints/{endpoint_id}/deliveries")


@router.get("", responses=gives(Page[DeliveryShown]))
async def list_(
    services: ServicesDep,
    caller: WebhookWriter,
    endpoint_id: str,
    *,
    status: Literal["pending", "delivered", "failed"] | None = None,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
) -> Response:
    """Newest first; they are kept for 30 days."""
    endpoint = await find_endpoint(services, caller, endpoint_id)
    after_id = parse_job_id(after, DELIVERY_PREFIX) if after is not None else None
    if after is not None and after_id is None:
        raise InvalidRequest("'after' must be the id of a delivery.", param="after")
    rows = await webhooks.list_deliveries(
        services.pool,
        caller.tenant_id,
        endpoint["id"],
        status=status,
        after=after_id,
        limit=limit + 1,
    )
    return page_of([delivery_object(row) for row in rows], limit=limit)


@router.post("/{delivery_id}/resend", responses=gives(DeliveryShown))
async def resend(
    services: ServicesDep, caller: WebhookWriter, endpoint_id: str, delivery_id: str
) -> Response:
    """Send an event once more, under the same event id, delivered or not."""
    parsed = parse_job_id(delivery_id, DELIVERY_PREFIX)
    if parsed is None:
        raise WebhookNotFound
    row = await webhooks.resend(
        services.pool, caller.tenant_id, parse_endpoint_id(endpoint_id), parsed
    )
    return JsonResponse(delivery_object(found(row)))


def delivery_object(row: webhooks.Row) -> dict[str, Any]:
    """A delivery as clients see it."""
    over = "delivered" if row["delivered_at"] else "failed"
    return {
        "id": format_job_id(row["id"], DELIVERY_PREFIX),
        "object": "webhook_delivery",
        "webhook_endpoint_id": format_job_id(row["endpoint_id"], ENDPOINT_PREFIX),
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
