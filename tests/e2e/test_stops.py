"""Every way to stop an inference worker, while Redis is away: it ends in time and costs no job an
attempt. Its jobs were claimed without tickets, so Celery knows nothing of them.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.e2e.test_job_path import submit
from tests.support.cluster import Cluster
from tests.support.member import Member
from workers.inference.engine.stub import expected_text

DRAIN_S = 1.0
SLOTS = 2  # of each worker
NUM_ROUNDS = 3
MAX_TOKENS = 4_000  # three minutes, until workers are restarted to be faster
ENDS_WITHIN_S = 15.0

WAYS = (
    (signal.SIGTERM,),
    (signal.SIGTERM, signal.SIGTERM),
    (signal.SIGINT, signal.SIGINT),
    (signal.SIGQUIT,),
)


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """As many workers as the test says; a job takes longer than a drain."""
    environment = {
        "MILLRACE_DRAIN_S": str(DRAIN_S),
        "MILLRACE_STUB_STEP_MS": "50",
        "MILLRACE_STUB_SLOTS": str(SLOTS),
    }
    with Cluster(num_workers=request.param, worker_environment=environment) as started:
        yield started


@pytest.mark.parametrize("cluster", [len(WAYS)], indirect=True)
def test_no_way_to_stop_a_worker_costs_a_job_an_attempt(cluster: Cluster) -> None:
    cluster.kill_redis()
    submit_jobs(cluster, SLOTS * len(WAYS), max_tokens=MAX_TOKENS)
    wait_for_claims(cluster, cluster.workers)

    for worker, way in zip(cluster.workers, WAYS, strict=True):
        for number in way:
            worker.child.send(number)
    cluster.wait_until(
        lambda: not any(worker.is_alive for worker in cluster.workers),
        timeout_s=ENDS_WITHIN_S,
        what="the end of every worker",
    )

    assert {worker.child.exit_code for worker in cluster.workers} == {0}
    rows = cluster.query("SELECT status, reason, fail_count FROM jobs")
    assert rows == [{"status": "queued", "reason": "worker_drained", "fail_count": 0}] * len(rows)
    assert outcomes(cluster) == {"drained"}


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [2], indirect=True)
def test_rolling_restarts_while_redis_is_away_fail_nothing(cluster: Cluster) -> None:
    cluster.kill_redis()
    jobs = submit_jobs(cluster, SLOTS * 2, max_tokens=MAX_TOKENS)
    wait_for_claims(cluster, cluster.workers)

    for _ in range(NUM_ROUNDS):
        for worker in cluster.workers:
            assert worker.stop(), worker.log
            worker.start(wait=False)
            wait_for_claims(cluster, [worker])
    cluster.start_redis()
    for worker in cluster.workers:
        worker.spec = worker.spec.with_environment({"MILLRACE_STUB_STEP_MS": "0"})
        worker.restart(wait=False)

    is_over = "SELECT count(*) AS n FROM jobs WHERE finished_at IS NOT NULL"
    cluster.wait_until(
        lambda: cluster.query(is_over) == [{"n": len(jobs)}], timeout_s=60, what="all ends"
    )
    rows = cluster.query("SELECT id, fail_count, output FROM jobs JOIN job_results ON job_id = id")
    assert {row["id"].hex: row["output"][0]["text"] for row in rows} == jobs
    assert {row["fail_count"] for row in rows} == {0}
    assert outcomes(cluster) == {"drained", "ok"}


def submit_jobs(cluster: Cluster, count: int, *, max_tokens: int) -> dict[str, str]:
    """Their ids with the texts they will have."""
    with cluster.http(cluster.create_tenant("acme")) as http:
        ids = [submit(http, seed=seed, max_tokens=max_tokens) for seed in range(count)]
    return {
        id_.removeprefix("job_"): expected_text(seed, max_tokens) for seed, id_ in enumerate(ids)
    }


def wait_for_claims(cluster: Cluster, workers: list[Member]) -> None:
    """Until each runs as much as it can."""
    pids = [worker.pid for worker in workers]
    cluster.wait_until(
        lambda: (
            cluster.query(
                "SELECT count(*) AS n FROM jobs JOIN worker_leases USING (worker_id)"
                " WHERE status = 'in_progress' AND pid = ANY(%s)",
                (pids,),
            )
            == [{"n": SLOTS * len(workers)}]
        ),
        what="claims without tickets",
    )


def outcomes(cluster: Cluster) -> set[str]:
    return {row["outcome"] for row in cluster.query("SELECT outcome FROM job_attempts")}
