"""What webhooks tell of, in OpenAI's words."""

from __future__ import annotations

from typing import Literal, get_args

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
