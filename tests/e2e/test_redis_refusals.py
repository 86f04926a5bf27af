"""Redis answers, but takes nothing: no memory left, only a replica, no room on its disk. No process
ends of it, no job loses its attempt, and all goes on by itself once it takes writes again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from urllib.parse import urlsplit

import psutil
import pytest
import redis

from cli.stack.readiness import nodes
from tests.e2e.streams import Reader, read_beside
from tests.e2e.test_job_path import submit
from tests.support.cluster import Cluster
from tests.support.member import Tenant
from workers.inference.engine.stub import expected_text

NUM_JOBS = 12
NUM_READERS = 4
NUM_TOKENS = 300  # 3 s of the stub
REFUSES_S = 8.0
NUM_TRIES = 8  # of Celery's consumer meanwhile, at least

Refusal = Callable[[redis.Redis], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    environment = {"MILLRACE_STUB_STEP_MS": "10"}
    with Cluster(num_batches=1, worker_environment=environment) as started:
        yield started


@pytest.fixture(scope="module")
def tenant(cluster: Cluster) -> Tenant:
    return cluster.create_tenant("acme")


@contextmanager
def _full(client: redis.Redis) -> Iterator[None]:
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


@contextmanager
def _replica(client: redis.Redis) -> Iterator[None]:
    """What is left after a failover, until the address leads to the new primary."""
    client.replicaof("127.0.0.1", "1")
    try:
        yield
    finally:
        client.replicaof("NO", "ONE")


@contextmanager
def _too_few_replicas(client: redis.Redis) -> Iterator[None]:
    """Refused like all writes of a Redis whose disk is full (MISCONF)."""
    client.config_set("min-replicas-to-write", 1)
    try:
        yield
    finally:
        client.config_set("min-replicas-to-write", 0)


@pytest.mark.parametrize(
    "refuse",
    [
        _replica,
        pytest.param(_full, marks=pytest.mark.slow),
        pytest.param(_too_few_replicas, marks=pytest.mark.slow),
    ],
)
def test_a_redis_that_takes_no_writes_ends_no_process_and_no_attempt(
    cluster: Cluster, tenant: Tenant, refuse: Refusal
) -> None:
    processes = _processes(cluster)
    with cluster.http(tenant) as http, cluster.redis() as client:
        jobs = [submit(http, seed=seed, max_tokens=NUM_TOKENS) for seed in range(NUM_JOBS)]
        readers = [Reader(http, job_id) for job_id in jobs[:NUM_READERS]]
        readings = [read_beside(reader, timeout_s=90) for reader in readers]
        cluster.wait_until(lambda: all(reader.last_seq > 20 for reader in readers))

        num_connections = _num_connections(cluster)  # with all that is opened once
        with refuse(client):
            time.sleep(REFUSES_S)  # the fault itself: how long it lasts is the point
            late = submit(http, seed=NUM_JOBS, max_tokens=5)
        for reading in readings:
            reading.result(timeout=90)
        ended = [
            http.get(f"/v1/jobs/{job_id}", params={"wait_s": 60}).json() for job_id in [*jobs, late]
        ]
        cluster.wait_until(lambda: _all_answer(cluster), what="consumers")

    nums = [NUM_TOKENS] * NUM_JOBS + [5]
    texts = [expected_text(seed, num) for seed, num in enumerate(nums)]
    assert [(job["status"], job["attempt"]) for job in ended] == [("incomplete", 1)] * len(ended)
    assert [job["output"][0]["text"] for job in ended] == texts
    assert [reader.text for reader in readers] == texts[:NUM_READERS]
    assert _processes(cluster) == processes, cluster.logs()
    after = _num_connections(cluster)
    left = [num - before for before, num in zip(num_connections, after, strict=True)]
    assert max(left) < NUM_TRIES, left  # each try to connect in vain left three open


def _num_connections(cluster: Cluster) -> list[int]:
    """To Redis, of each process, whether or not it has closed its end."""
    port = urlsplit(cluster.platform.redis_url).port
    return [
        sum(
            bool(connection.raddr and connection.raddr.port == port)
            for connection in psutil.Process(member.pid).net_connections("tcp")
        )
        for member in cluster.members
    ]


def _processes(cluster: Cluster) -> set[psutil.Process]:
    """Of all members, with the beat that runs beside one. Equal only if none was started anew."""
    members = [psutil.Process(member.pid) for member in cluster.members if member.is_alive]
    return {*members, *(child for member in members for child in member.children())}


def _all_answer(cluster: Cluster) -> bool:
    workers = [*cluster.workers, *cluster.billing, *cluster.maintenance]
    return {member.spec.node for member in workers} <= nodes(cluster.platform.redis_url)
