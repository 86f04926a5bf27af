"""The bounded end of a worker: what finishes in time finishes here, the rest goes back.

A given-back job costs no failure and keeps its tokens; another worker continues its stream.
"""

from __future__ import annotations

import time

import psycopg
import structlog

from store import leases
from workers.inference.runtime import Runtime

log = structlog.get_logger(__name__)

POLL_S = 0.05


def drain(runtime: Runtime) -> None:
    """Announce the drain, wait `drain_s`, then abort what is left."""
    try:
        with runtime.pool.connection() as connection:
            leases.set_draining(connection, runtime.worker_id)
    except psycopg.Error:
        log.warning("drain_not_announced")
    give_up_at = time.monotonic() + runtime.settings.drain_s
    while runtime.running() and time.monotonic() < give_up_at:
        time.sleep(POLL_S)
    for job in runtime.running():
        runtime.abort(job)
