"""Real processes. One cluster a module; tests that kill leave it whole again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster
from tests.support.member import Tenant


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two workers with the stub engine: a token every 5 ms a job, 32 jobs at once."""
    with Cluster(num_workers=2, worker_environment={"MILLRACE_STUB_STEP_MS": "5"}) as started:
        yield started


@pytest.fixture(scope="module")
def tenant(cluster: Cluster) -> Tenant:
    return cluster.create_tenant("acme")
