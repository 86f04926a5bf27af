"""What webhooks tell of: OpenAI's event types, and one for trying an endpoint out."""

from __future__ import annotations

from typing import Final, Literal, get_args

# response.* are of background responses alone, as at OpenAI: others have a client that waits.
WebhookEvent = Literal[
    "response.completed",
    "response.incomplete",
    "response.failed",
    "response.cancelled",
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
]
WEBHOOK_EVENTS: tuple[str, ...] = get_args(WebhookEvent)
TEST_EVENT: Final = "webhook.test"
