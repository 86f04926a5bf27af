"""A turn of a conversation that is interrupted where no test on a terminal can hit."""

from __future__ import annotations

import httpx
import pytest

from cli.chat import Conversation
from millrace import Client

JOB = {
    "id": "job_1", "object": "job", "status": "queued", "model": "m", "model_requested": "m",
    "service_tier": "default", "created_at": 1, "started_at": None, "finished_at": None,
    "deadline_at": 4, "attempt": 0, "output": [], "cost_micros": None, "currency": "EUR",
    "incomplete_details": None, "metadata": {}, "events_url": "/v1/jobs/job_1/events",
}  # fmt: skip


def test_job_whose_acceptance_was_not_heard_of_is_cancelled_by_its_key() -> None:
    seen: list[tuple[str, str | None]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.path, request.headers.get("idempotency-key")))
        if len(seen) == 1:
            raise KeyboardInterrupt
        return httpx.Response(202, json=JOB)

    with Client("http://test", "key", transport=httpx.MockTransport(handler)) as client:
        talk = Conversation(client, {"model": "m"}, system=None, is_json=False)
        with pytest.raises(KeyboardInterrupt):
            talk.say("hello")

    (first, key), (second, same_key), (cancelled, _) = seen
    assert (first, second) == ("/v1/jobs", "/v1/jobs")
    assert key == same_key
    assert cancelled == "/v1/jobs/job_1/cancel"
    assert talk.messages == []
