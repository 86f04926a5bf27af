"""Hints that we write are those that Celery would send."""

from __future__ import annotations

import json
from typing import Any

from kombu import Connection, Producer

from tasks.app import app
from tasks.hint_messages import HintMessages
from tasks.ids import uuid7
from tasks.inference import GENERATE, Hint
from tasks.queues import ServiceTier, queue_for
from tasks.settings import broker_transport_options
from tests.integration.tasks.conftest import RedisServer

PREFIX = broker_transport_options["global_keyprefix"]
QUEUE = queue_for("default", ServiceTier.FLEX, 3)


def _send_by_celery(url: str, hint: Hint) -> None:
    options = {"transport_options": broker_transport_options}
    with Connection(url, **options) as connection, connection.channel() as channel:
        app.send_task(
            GENERATE,
            args=(hint.job_id.hex,),
            task_id=hint.task_id,
            queue=QUEUE,
            producer=Producer(channel),
            ignore_result=True,
        )


def _without_tag(message: dict[str, Any]) -> dict[str, Any]:
    assert message["properties"].pop("delivery_tag")
    return message


def test_a_hint_is_the_message_that_celery_sends(redis_server: RedisServer) -> None:
    hint = Hint(uuid7(), "default", ServiceTier.FLEX, 3, hint_count=2)

    _send_by_celery(redis_server.server.url, hint)
    with redis_server.client() as client:
        [sent] = client.lrange(f"{PREFIX}{QUEUE.name}", 0, -1)
    ours = HintMessages(GENERATE).message(
        job=hint.job_id.hex, task_id=hint.task_id, queue=QUEUE.name
    )

    assert _without_tag(json.loads(ours)) == _without_tag(json.loads(sent))


def test_each_message_has_a_tag_of_its_own() -> None:
    messages = HintMessages(GENERATE)

    tags = {
        json.loads(messages.message(job="a", task_id="a.1", queue="q"))["properties"][
            "delivery_tag"
        ]
        for _ in range(10)
    }

    assert len(tags) == 10
