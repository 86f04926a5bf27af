"""The `inference.generate` task: its message is a ticket for a lane and names one job id.

The worker that takes a ticket claims the best queued job of the named job's tenant, pool and tier,
or else the oldest job of the lane.
Tickets may be lost, doubled or late; the re-hinter replaces lost ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from kombu import Queue
from kombu.pools import producers

from tasks.app import app
from tasks.hint_messages import hint_messages
from tasks.ids import parse_job_id
from tasks.queues import ServiceTier, queue_for

GENERATE = "inference.generate"

# A publish that takes longer means Redis is away; the re-hinter will do it again.
PUBLISH_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Hint:
    """One ticket. `hint_count` makes the Celery id new: a revoked id blocks later ones for ever."""

    job_id: UUID
    pool: str
    tier: ServiceTier
    lane: int
    hint_count: int = 1

    @property
    def task_id(self) -> str:
        """Celery's id of this message, shown in Flower."""
        return f"{self.job_id.hex}.{self.hint_count}"


def job_of_task_id(task_id: str) -> UUID | None:
    """The job a Celery task id belongs to; None for the id of any other task."""
    digits, _, hint_count = task_id.partition(".")
    return parse_job_id(digits, prefix="") if hint_count.isdecimal() else None


def send_hints(hints: Iterable[Hint]) -> None:
    """Publish tickets in one round trip. Blocks; raises kombu or redis errors; never retries."""
    messages = hint_messages(GENERATE)
    lists: defaultdict[str, list[str]] = defaultdict(list)
    for hint in hints:
        queue = queue_for(hint.pool, hint.tier, hint.lane).name
        lists[queue].append(
            messages.message(job=hint.job_id.hex, task_id=hint.task_id, queue=queue)
        )
    with _pipeline() as pipeline:
        for queue, of_queue in lists.items():
            pipeline.lpush(queue, *of_queue)
        pipeline.execute()


def num_tickets(queues: Sequence[Queue]) -> list[int]:
    """How many wait in each queue, in one round trip. Blocks; raises kombu or redis errors."""
    with _pipeline() as pipeline:
        for queue in queues:
            pipeline.llen(queue.name)
        return [int(num) for num in pipeline.execute()]


@contextmanager
def _pipeline() -> Iterator[Any]:
    """To the broker, over one of this process's connections: waits for one that is free."""
    with (
        producers[app.connection_for_write()].acquire(
            block=True, timeout=PUBLISH_TIMEOUT_S
        ) as producer,
        producer.channel.conn_or_acquire() as client,
        client.pipeline(transaction=False) as pipeline,
    ):
        yield pipeline
