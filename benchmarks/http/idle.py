"""P7: what an open stream costs while nothing happens on it."""

from __future__ import annotations

import psutil

from benchmarks.http.enqueue import BODY
from benchmarks.http.streams import Readers
from tests.support.cluster import Cluster
from tests.support.member import Tenant

NUM_JOBS = 100
KIB = 1024


def kib_per_stream(cluster: Cluster, tenant: Tenant, *, num_streams: int) -> tuple[float, int]:
    """KiB of the API process a stream, and its connections to Redis while all are open."""
    with cluster.http(tenant) as http:
        answers = [http.post("/v1/jobs", json=BODY).raise_for_status() for _ in range(NUM_JOBS)]
    paths = [answer.json()["events_url"] for answer in answers]
    process = psutil.Process(cluster.apis[0].pid)
    with Readers(cluster.url, tenant.headers, 100, paths):  # what the first ones bring along
        before = process.memory_info().rss
        with Readers(cluster.url, tenant.headers, num_streams, paths):
            grown = process.memory_info().rss - before
            with cluster.redis() as redis:
                num_connections = len(redis.client_list())
    return grown / KIB / num_streams, num_connections
