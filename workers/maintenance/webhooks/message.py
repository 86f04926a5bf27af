"""A delivery as an HTTP request: OpenAI's event object, signed as Standard Webhooks has it.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any

import orjson

from tasks.ids import EVENT_PREFIX, format_job_id


def event_body(delivery: dict[str, Any]) -> bytes:
    """The same bytes whenever it is sent."""
    return orjson.dumps(
        {
            "id": event_id(delivery),
            "object": "event",
            "created_at": int(delivery["created_at"].timestamp()),
            "type": delivery["type"],
            "data": {"id": delivery["object_id"]},
        }
    )


def event_id(delivery: dict[str, Any]) -> str:
    """By which a receiver knows what it has seen already."""
    return format_job_id(delivery["event_id"], EVENT_PREFIX)


def signed_headers(delivery: dict[str, Any], body: bytes, *, now_s: int) -> dict[str, str]:
    """`now_s`: unix seconds. Signed with the previous secret too, while that one is valid."""
    id_ = event_id(delivery)
    secrets = [delivery["secret"], delivery["previous_secret"]]
    signatures = [sign(secret, id_, now_s, body) for secret in secrets if secret is not None]
    return {
        "content-type": "application/json",
        "user-agent": "Millrace-Webhooks",
        "webhook-id": id_,
        "webhook-timestamp": str(now_s),
        "webhook-signature": " ".join(signatures),
    }


def sign(secret: bytes, id_: str, now_s: int, body: bytes) -> str:
    """`v1,` and the base64 of HMAC-SHA256 over id, time and body."""
    signed = b".".join((id_.encode(), str(now_s).encode(), body))
    digest = hmac.new(secret, signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"
