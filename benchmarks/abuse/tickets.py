"""How many tickets wait in the queues for each job that is ready, and how long a neighbour waits
behind those that a mass cancel leaves.
"""

from __future__ import annotations

import time
from itertools import count
from typing import Any

from benchmarks.http.enqueue import BODY
from tasks.queues import lane_for
from tasks.settings import broker_transport_options
from tests.support.cluster import Cluster
from tests.support.member import Tenant
from tests.support.waiting import wait_until

NUM_JOBS = 2_000
WATCH_S = 120.0
# About four jobs a second, so that hints are sent again while the backlog lasts.
_SLOW = {"MILLRACE_STUB_SLOTS": "4", "MILLRACE_STUB_TOKEN_MS": "60"}

_TICKETS = f"{broker_transport_options['global_keyprefix']}inference.*"
_NUM_READY = "SELECT count(*) AS num FROM jobs WHERE status = 'queued' AND run_after <= now()"
_WAITED = """
SELECT extract(epoch FROM started_at - created_at)::float AS seconds FROM jobs
WHERE tenant_id = %s AND started_at IS NOT NULL
"""


def measure() -> dict[str, Any]:
    """Watches a backlog that a slow worker works off; then its tenant cancels the rest."""
    with Cluster(worker_environment=_SLOW) as cluster:
        busy = cluster.create_tenant("busy", credit_micros=10**15)
        job_ids = _post(cluster, busy, NUM_JOBS)
        worst, most = _watch(cluster)
        num_cancelled = _cancel(cluster, busy, job_ids)
        num_left = _num_tickets(cluster)
        neighbour_s = _wait_of(cluster, _neighbour(cluster, busy))
    return {
        "tickets_over_ready": round(worst, 3),
        "most_tickets": most,
        "jobs_posted": NUM_JOBS,
        "jobs_cancelled": num_cancelled,
        "tickets_after_cancel": num_left,
        "neighbour_s_after_cancel": round(neighbour_s, 2),
    }


def _post(cluster: Cluster, tenant: Tenant, num: int) -> list[str]:
    with cluster.http(tenant) as http:
        answers = [http.post("/v1/jobs", json=BODY).raise_for_status() for _ in range(num)]
    return [answer.json()["id"] for answer in answers]


def _watch(cluster: Cluster) -> tuple[float, int]:
    """The most tickets for each job, and the most tickets."""
    worst, most = 0.0, 0
    end = time.monotonic() + WATCH_S
    while time.monotonic() < end:
        num_ready = int(cluster.query(_NUM_READY)[0]["num"])
        num_tickets = _num_tickets(cluster)
        worst = max(worst, num_tickets / max(num_ready, 1))
        most = max(most, num_tickets)
        time.sleep(1.0)
    return worst, most


def _cancel(cluster: Cluster, tenant: Tenant, job_ids: list[str]) -> int:
    """The newest first, so that the worker is busy to the end."""
    num_ready = int(cluster.query(_NUM_READY)[0]["num"])
    with cluster.http(tenant) as http:
        for job_id in reversed(job_ids):
            http.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
    return num_ready


def _neighbour(cluster: Cluster, tenant: Tenant) -> Tenant:
    """Another tenant of the same lane."""
    for number in count():
        other = cluster.create_tenant(f"neighbour-{number}", credit_micros=10**15)
        if lane_for(other.id) == lane_for(tenant.id):
            return other
    raise AssertionError("there are sixteen lanes")


def _wait_of(cluster: Cluster, tenant: Tenant) -> float:
    """From the POST of one job to its start."""
    _post(cluster, tenant, 1)
    wait_until(lambda: cluster.query(_WAITED, (tenant.id,)), timeout_s=WATCH_S, what="the start")
    return float(cluster.query(_WAITED, (tenant.id,))[0]["seconds"])


def _num_tickets(cluster: Cluster) -> int:
    with cluster.redis() as redis:
        queues = redis.scan_iter(match=_TICKETS, _type="list", count=1_000)
        return sum(int(redis.llen(queue)) for queue in queues)
