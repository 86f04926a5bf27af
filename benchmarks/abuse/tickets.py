"""How many tickets wait in the queues for each job that is ready."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.http.enqueue import BODY
from tests.support.cluster import Cluster

NUM_JOBS = 2_000
WATCH_S = 120.0
# About four jobs a second, so that hints are sent again while the backlog lasts.
_SLOW = {"MILLRACE_STUB_SLOTS": "4", "MILLRACE_STUB_TOKEN_MS": "60"}

_NUM_READY = "SELECT count(*) AS num FROM jobs WHERE status = 'queued' AND run_after <= now()"


def measure() -> dict[str, Any]:
    """Watches a backlog that a slow worker works off."""
    with Cluster(worker_environment=_SLOW) as cluster:
        tenant = cluster.create_tenant("busy", credit_micros=10**15)
        with cluster.http(tenant) as http:
            for _ in range(NUM_JOBS):
                http.post("/v1/jobs", json=BODY).raise_for_status()
        worst, most = 0.0, 0
        end = time.monotonic() + WATCH_S
        while time.monotonic() < end:
            num_ready = int(cluster.query(_NUM_READY)[0]["num"])
            num_tickets = _num_tickets(cluster)
            worst = max(worst, num_tickets / max(num_ready, 1))
            most = max(most, num_tickets)
            time.sleep(1.0)
    return {"tickets_over_ready": round(worst, 3), "most_tickets": most, "jobs_posted": NUM_JOBS}


def _num_tickets(cluster: Cluster) -> int:
    with cluster.redis() as redis:
        queues = redis.scan_iter(match="inference.*", _type="list", count=1_000)
        return sum(int(redis.llen(queue)) for queue in queues)
