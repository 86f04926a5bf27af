"""Every queue name: `inference.<pool>.<tier>.<lane>`, `billing`, `webhooks`, `maintenance`.

A queue has an exchange of its own: without it all queues would share the default queue's.
"""

from __future__ import annotations

import zlib
from enum import StrEnum
from functools import lru_cache
from uuid import UUID

from kombu import Exchange, Queue

NUM_LANES = 16  # a tier; fixed, since a running worker has subscribed to all of them
BILLING = "billing"
WEBHOOKS = "webhooks"
MAINTENANCE = "maintenance"
BATCHES = "batches"


class ServiceTier(StrEnum):
    """OpenAI's tier names. Stored and sent."""

    PRIORITY = "priority"  # first in line, dearest
    DEFAULT = "default"
    FLEX = "flex"  # cheaper, may wait
    BATCH = "batch"  # takes what the others leave


_TIERS = {tier.value: tier for tier in ServiceTier}


@lru_cache(maxsize=4096)
def named_queue(name: str) -> Queue:
    """A queue with its own direct exchange."""
    return Queue(name, Exchange(name, type="direct"), routing_key=name)


def queue_for(pool: str, tier: ServiceTier, lane: int) -> Queue:
    """The queue of one lane. Passed to Celery as an object, so no process needs a static list."""
    return named_queue(f"inference.{pool}.{tier.value}.{lane}")


def queues_of_pool(pool: str) -> list[Queue]:
    """All lanes of all tiers: what an inference worker of this pool consumes."""
    return [queue_for(pool, tier, lane) for tier in ServiceTier for lane in range(NUM_LANES)]


def tier_of_queue(name: str) -> ServiceTier | None:
    """The tier of an inference queue's name, None for any other queue."""
    parts = name.split(".")
    if len(parts) != 4 or parts[0] != "inference":
        return None
    return _TIERS.get(parts[2])


def lane_for(tenant_id: UUID) -> int:
    """The lane a tenant's hints go to: a stable hash, so that every API process agrees."""
    return zlib.crc32(tenant_id.bytes) % NUM_LANES
