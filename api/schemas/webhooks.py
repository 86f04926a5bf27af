"""The bodies of webhook routes, and what they answer with. OpenAI's, with a few fields more."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from api.schemas.objects import Shown
from api.schemas.strict import IGNORE_UNKNOWN, Strict
from tasks.webhook_events import WEBHOOK_EVENTS, WebhookEvent
from tasks.webhook_urls import MAX_URL

Url = Annotated[str, Field(min_length=1, max_length=MAX_URL)]
EventTypes = Annotated[list[WebhookEvent], Field(min_length=1, max_length=len(WEBHOOK_EVENTS))]
Name = Annotated[str, Field(min_length=1, max_length=256, pattern="^[^\x00]*$")]


class CreateWebhookEndpoint(Strict):
    """Where events go, and which."""

    model_config = IGNORE_UNKNOWN

    name: Name
    url: Url
    event_types: EventTypes


class UpdateWebhookEndpoint(Strict):
    """What is left out stays as it is."""

    model_config = IGNORE_UNKNOWN

    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None
    enabled: bool | None = None


class RotateSecret(Strict):
    """Whether what is sent is signed with the old secret as well, for a day."""

    model_config = IGNORE_UNKNOWN

    keep_old_secret_active_for_24_hours: bool = False


class SampleEvent(Strict):
    """What the sample is to be of."""

    model_config = IGNORE_UNKNOWN

    event_type: WebhookEvent


class WebhookEndpointShown(Shown):
    """The secret is shown when it is made, and never again."""

    id: str
    object: Literal["webhook_endpoint"]
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    created_at: int
    updated_at: int
    enabled: bool
    disabled_reason: str | None
    signing_secret: str = ""


class WebhookEndpointDeleted(Shown):
    """It and its deliveries are gone."""

    id: str
    object: Literal["webhook_endpoint.deleted"]
    deleted: Literal[True]


class WebhookTestShown(Shown):
    """What the endpoint answered to a sample."""

    object: Literal["webhook_endpoint.test"]
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True]


class WebhookEventTypesShown(Shown):
    """What an endpoint may be told of."""

    object: Literal["list"]
    data: list[str]


class DeliveryShown(Shown):
    """An event for one endpoint, and how its delivery goes."""

    id: str
    object: Literal["webhook_delivery"]
    webhook_endpoint_id: str
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
