"""What beat sends, to whom, and how long it is worth doing."""

from __future__ import annotations

from tasks.maintenance import BEAT_SCHEDULE
from tasks.queues import BILLING, MAINTENANCE, named_queue

TABLE = {
    "retention": ("maintenance.retention", 600.0, MAINTENANCE),
    "partitions": ("maintenance.partitions", 21_600.0, MAINTENANCE),
    "expire_reservations": ("billing.expire_reservations", 3_600.0, BILLING),
}


def test_each_periodic_task_goes_to_its_queue_and_expires_when_the_next_is_due() -> None:
    schedule = {
        name: {
            "task": task,
            "schedule": interval_s,
            "options": {
                "queue": named_queue(queue),
                "expires": interval_s,
                "ignore_result": True,
            },
        }
        for name, (task, interval_s, queue) in TABLE.items()
    }

    assert schedule == BEAT_SCHEDULE
