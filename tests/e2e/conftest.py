"""Real processes. One cluster for all modules that ask for no other; what a test kills is started
again behind it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster
from tests.support.member import Tenant


@pytest.fixture(scope="session")
def common_cluster() -> Iterator[Cluster]:
    """Two workers with the stub engine: a token every 5 ms a job, 32 jobs at once."""
    with Cluster(num_workers=2, worker_environment={"MILLRACE_STUB_STEP_MS": "5"}) as started:
        yield started


@pytest.fixture(scope="module")
def cluster(common_cluster: Cluster) -> Cluster:
    return common_cluster


@pytest.fixture
def mended(cluster: Cluster) -> Iterator[None]:
    """For tests that kill."""
    yield
    cluster.mend()


@pytest.fixture(scope="module")
def tenant(cluster: Cluster, request: pytest.FixtureRequest) -> Tenant:
    return cluster.create_tenant(request.module.__name__)
