"""The bodies of webhook routes, and what they answer with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from api.schemas.objects import Shown
from api.schemas.strict import Strict
from tasks.webhook_events import WEBHOOK_EVENTS, WebhookEvent
from tasks.webhook_urls import MAX_URL

Url = Annotated[str, Field(min_length=1, max_length=MAX_URL)]
Events = Annotated[list[WebhookEvent], Field(min_length=1, max_length=len(WEBHOOK_EVENTS))]
Description = Annotated[str, Field(max_length=512)]


class CreateWebhook(Strict):
    """Where events go, and which: all of them unless some are named."""

    url: Url
    events: Events | None = None
    description: Description | None = None


class UpdateWebhook(Strict):
    """What is left out stays as it is. `events: null` means all."""

    url: Url | None = None
    events: Events | None = None
    description: Description | None = None
    enabled: bool | None = None


class WebhookShown(Shown):
    """A webhook endpoint. The secret is shown when it is made, and never again."""

    id: str
    object: Literal["webhook_endpoint"]
    url: str
    events: list[str] | None
    description: str | None
    enabled: bool
    disabled_reason: str | None
    created_at: int
    secret: str = ""


class DeliveryShown(Shown):
    """An event for one endpoint, and how its delivery goes."""

    id: str
    object: Literal["webhook_delivery"]
    webhook_id: str
    event_id: str
    event_type: str
    object_id: str
    status: Literal["pending", "delivered", "failed"]
    attempts: int
    next_attempt_at: int | None
    last_status_code: int | None
    last_error: str | None
    created_at: int
    delivered_at: int | None


class WebhookDeleted(Shown):
    """It and its deliveries are gone."""

    id: str
    object: Literal["webhook_endpoint"]
    deleted: Literal[True]
