"""The nudger: tells billing again of a job that should have been settled long ago."""

from __future__ import annotations

import structlog

from store.outcomes import oldest_unsettled
from store.pools import DictConnection
from tasks.billing import enqueue_settle
from workers.maintenance import metrics

# Billing polls by itself every 2 s. One hint wakes it for all that wait, so one at a time is sent:
# with billing down, hints must not pile up in Redis.
INTERVAL_S = 10.0
LATE_AFTER_S = 10.0

log = structlog.get_logger(__name__)


def nudge(connection: DictConnection) -> bool:
    """Send at most one hint."""
    job_id = oldest_unsettled(connection, older_than_s=LATE_AFTER_S)
    if job_id is not None:
        metrics.NUDGES.inc()
        log.warning("outcome_unsettled_for_long", job_id=str(job_id))
        enqueue_settle(job_id)
    return False
