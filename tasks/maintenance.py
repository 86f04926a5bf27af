"""Periodic tasks of the maintenance worker, and when beat sends them.

Each may run late, twice or on two workers at once. `expires` drops those that waited out an outage:
the next one does the same work.
"""

from __future__ import annotations

from typing import Any

from tasks.billing import EXPIRE_RESERVATIONS
from tasks.queues import BILLING, MAINTENANCE, named_queue

RETENTION = "maintenance.retention"
PARTITIONS = "maintenance.partitions"

RETENTION_INTERVAL_S = 600.0
EXPIRE_RESERVATIONS_INTERVAL_S = 3_600.0
PARTITIONS_INTERVAL_S = 21_600.0  # made three months ahead, so that weeks may pass without


def _every(task: str, interval_s: float, queue: str) -> dict[str, Any]:
    options = {"queue": named_queue(queue), "expires": interval_s, "ignore_result": True}
    return {"task": task, "schedule": interval_s, "options": options}


BEAT_SCHEDULE: dict[str, dict[str, Any]] = {
    "retention": _every(RETENTION, RETENTION_INTERVAL_S, MAINTENANCE),
    "partitions": _every(PARTITIONS, PARTITIONS_INTERVAL_S, MAINTENANCE),
    "expire_reservations": _every(EXPIRE_RESERVATIONS, EXPIRE_RESERVATIONS_INTERVAL_S, BILLING),
}
