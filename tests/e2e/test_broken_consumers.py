"""A worker whose consumer breaks beyond repair ends soon, and says so by its exit code: whoever
supervises it starts it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_job_path import submit
from tests.support import crashing_consumer
from tests.support.cluster import Cluster
from tests.support.member import Member

DRAIN_S = 1.0
ENDS_WITHIN_S = 10.0


@pytest.fixture(scope="module")
def crash_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crash") / "now"


@pytest.fixture(scope="module")
def cluster(crash_file: Path) -> Iterator[Cluster]:
    """One of each worker, made to crash on demand; jobs take longer than any test waits."""
    slow = {"MILLRACE_STUB_STEP_MS": "500", "MILLRACE_DRAIN_S": str(DRAIN_S)}
    with Cluster(num_batches=1, worker_environment=slow) as started:
        for member in _workers(started):
            member.kill()
            member.spec = crashing_consumer.loaded_into(member.spec, crash_file)
            member.start(wait=False)
        for member in started.members:
            member.wait_ready()
        yield started


def test_every_worker_ends_with_an_error_and_gives_its_jobs_back(
    cluster: Cluster, crash_file: Path
) -> None:
    with cluster.http(cluster.create_tenant("acme")) as http:
        job = submit(http, seed=1, max_tokens=400)
        cluster.wait_until(lambda: http.get(f"/v1/jobs/{job}").json()["status"] == "in_progress")

        crash_file.touch()

        cluster.wait_until(
            lambda: not any(member.is_alive for member in _workers(cluster)),
            timeout_s=ENDS_WITHIN_S,
            what="the end of every worker",
        )
        assert {member.child.exit_code for member in _workers(cluster)} == {1}
        assert http.get(f"/v1/jobs/{job}").json()["status"] == "queued"


def _workers(cluster: Cluster) -> list[Member]:
    return [*cluster.workers, *cluster.billing, *cluster.maintenance, *cluster.batches]
