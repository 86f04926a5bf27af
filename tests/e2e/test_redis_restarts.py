"""Redis dies again and again, or for long: no worker ends of it, and each consumes again."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psutil
import pytest

from cli.stack.readiness import nodes
from tasks.billing import SETTLE
from tasks.inference import GENERATE
from tasks.maintenance import PARTITIONS
from tasks.queues import BILLING, MAINTENANCE, ServiceTier, queue_for
from tests.support.cluster import Cluster
from tests.support.hints import Hints, flood, num_waiting, send_one

NUM_RESTARTS = 10
OUTAGE_S = 30.0
BACK_WITHIN_S = 30.0

TICKETS = Hints(GENERATE, queue_for("default", ServiceTier.DEFAULT, 0).name)
KINDS = (
    Hints(SETTLE, BILLING),
    Hints(PARTITIONS, MAINTENANCE, has_job=False),
    TICKETS,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One of each worker."""
    with Cluster(num_apis=0, num_batches=1) as started:
        yield started


def test_no_worker_ends_when_redis_dies_again_and_again_among_hints(cluster: Cluster) -> None:
    processes = _processes(cluster)

    with flood(cluster.platform.redis_url, KINDS):
        for _ in range(NUM_RESTARTS):
            cluster.restart_redis_empty()
            cluster.wait_until(lambda: _all_answer(cluster), what="consumers")

    assert _processes(cluster) == processes, cluster.logs()


def test_workers_consume_within_30_s_of_a_redis_that_was_away_for_30_s(cluster: Cluster) -> None:
    processes = _processes(cluster)

    cluster.kill_redis()
    time.sleep(OUTAGE_S)  # the fault itself: how long it lasts is the point
    cluster.start_redis()
    for kind in KINDS:
        send_one(cluster.platform.redis_url, kind)

    with cluster.redis() as client:
        cluster.wait_until(
            lambda: not any(num_waiting(client, kind) for kind in KINDS),
            timeout_s=BACK_WITHIN_S,
            what="consuming",
        )
    assert _processes(cluster) == processes, cluster.logs()


def _processes(cluster: Cluster) -> set[psutil.Process]:
    """Of all workers, with the beat that runs beside one. Equal only if none was started anew."""
    workers = [psutil.Process(member.pid) for member in cluster.members if member.is_alive]
    return {*workers, *(child for worker in workers for child in worker.children())}


def _all_answer(cluster: Cluster) -> bool:
    expected = {member.spec.node for member in cluster.members if member.is_alive}
    return expected <= nodes(cluster.platform.redis_url)
