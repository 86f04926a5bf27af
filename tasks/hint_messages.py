"""Hints as Celery messages, made from one that Celery made itself.

`send_task` and kombu's publish cost 0.5 ms of an interpreter that has jobs to accept; a hint
differs from the next in three words. So Celery sends one, to a queue in memory; the others
are its copies.
"""

from __future__ import annotations

import base64
import json
import uuid
from functools import lru_cache
from typing import Any

from kombu import Connection, Producer

from tasks.app import app
from tasks.queues import named_queue

_JOB, _ID, _QUEUE, _TAG = "<job>", "<id>", "<queue>", "<tag>"


class HintMessages:
    """Messages of one task whose only argument is the hex digits of a job id."""

    def __init__(self, task: str) -> None:
        message = _sent_by_celery(task)
        self._body = base64.b64decode(message.pop("body")).decode()
        message["properties"]["delivery_tag"] = _TAG
        self._frame = json.dumps(message | {"body": "<body>"})

    def message(self, *, job: str, task_id: str, queue: str) -> str:
        """As it goes into the queue's list. The words are ours: nothing in them needs escaping."""
        body = base64.b64encode(self._body.replace(_JOB, job).encode()).decode()
        return (
            self._frame.replace(_ID, task_id)
            .replace(_JOB, job)
            .replace(_QUEUE, queue)
            .replace(_TAG, str(uuid.uuid4()))
            .replace("<body>", body)
        )


@lru_cache
def hint_messages(task: str) -> HintMessages:
    """Of a task, made once a process."""
    return HintMessages(task)


def _sent_by_celery(task: str) -> dict[str, Any]:
    queue = named_queue(_QUEUE)
    with Connection("memory://") as connection, connection.channel() as channel:
        app.send_task(
            task,
            args=(_JOB,),
            task_id=_ID,
            queue=queue,
            producer=Producer(channel),
            ignore_result=True,
        )
        message: dict[str, Any] = channel._get(_QUEUE)  # as the transport holds it
        return message
