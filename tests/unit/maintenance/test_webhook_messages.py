"""What a delivery says, how it is signed, and when it is tried again."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import openai
import pytest
from openai.types.webhooks import ResponseCompletedWebhookEvent

from tasks.webhook_events import WEBHOOK_EVENTS
from workers.maintenance.webhooks import backoff
from workers.maintenance.webhooks.message import event_body, sign, signed_headers

SECRET, OLD_SECRET = bytes(range(32)), bytes(32)
DAY_S = 86_400


def _delivery(**fields: Any) -> dict[str, Any]:
    return {
        "event_id": UUID(int=7),
        "type": "response.completed",
        "object_id": "resp_" + "0" * 32,
        "created_at": datetime.fromtimestamp(1_700_000_000, UTC),
        "secret": SECRET,
        "previous_secret": None,
        **fields,
    }


def text_of(secret: bytes) -> str:
    return "whsec_" + base64.b64encode(secret).decode()


def test_the_body_is_openais_event_object() -> None:
    event = json.loads(event_body(_delivery()))

    assert event == {
        "id": f"evt_{7:032x}",
        "object": "event",
        "created_at": 1_700_000_000,
        "type": "response.completed",
        "data": {"id": "resp_" + "0" * 32},
    }
    ResponseCompletedWebhookEvent.model_validate(event, strict=True)


def test_the_signature_is_the_one_of_the_specification() -> None:
    # From the specification's own example.
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'

    signature = sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body)

    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("kind", WEBHOOK_EVENTS)
def test_the_official_client_accepts_every_event(kind: str) -> None:
    delivery = _delivery(type=kind, created_at=datetime.now(UTC))
    body = event_body(delivery)
    headers = signed_headers(delivery, body, now_s=int(datetime.now(UTC).timestamp()))

    with openai.OpenAI(api_key="none", webhook_secret=text_of(SECRET)) as client:
        event: Any = client.webhooks.unwrap(body, headers)

    assert event.type == kind
    assert event.data.id == delivery["object_id"]


def test_both_secrets_are_good_while_one_replaces_the_other() -> None:
    delivery = _delivery(previous_secret=OLD_SECRET)
    body = event_body(delivery)
    headers = signed_headers(delivery, body, now_s=int(datetime.now(UTC).timestamp()))

    for secret in (SECRET, OLD_SECRET):
        with openai.OpenAI(api_key="none", webhook_secret=text_of(secret)) as client:
            client.webhooks.verify_signature(body, headers)
    with (
        openai.OpenAI(api_key="none", webhook_secret=text_of(b"x" * 32)) as client,
        pytest.raises(openai.InvalidWebhookSignatureError),
    ):
        client.webhooks.verify_signature(body, headers)


def test_pauses_grow_and_a_day_holds_more_than_ten_attempts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backoff, "JITTER", 0.0)
    delays = [backoff.delay_s(attempts) for attempts in range(1, 30)]

    assert delays == sorted(delays)
    assert delays[0] == 5.0
    assert sum(delays[:10]) < DAY_S < sum(delays[:14])


@pytest.mark.parametrize(("asked_s", "least", "most"), [(60.0, 60, 60), (1e6, 3_600, 3_600)])
def test_an_endpoint_may_ask_for_a_pause_within_bounds(
    asked_s: float, least: float, most: float
) -> None:
    assert least <= backoff.delay_s(1, asked_s=asked_s) <= most
