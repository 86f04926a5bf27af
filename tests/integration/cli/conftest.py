"""The command as a process, and folders for state that the embedded services can live in."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import warm
from tests.support.cluster import Cluster
from tests.support.member import Tenant

Run = Callable[..., subprocess.CompletedProcess[str]]
MessagesOf = Callable[[Tenant], list[list[str]]]


def command_environment(state: Path, **extra: str) -> dict[str, str]:
    """Nothing of the machine's own Millrace."""
    kept = {name: value for name, value in os.environ.items() if "MILLRACE_" not in name}
    return {**kept, "MILLRACE_STATE_DIR": str(state), **extra}


@pytest.fixture
def millrace(tmp_path: Path) -> Run:
    """Runs the command with a state folder of its own. Keyword arguments are environment."""

    def run(
        *arguments: str, stdin: str | None = None, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        return warm.run(
            ["cli.main", *arguments],
            environment=command_environment(tmp_path / "state", **extra),
            stdin=stdin or "",
            timeout_s=60,
        )

    return run


def assert_one_line_error(
    result: subprocess.CompletedProcess[str], *words: str, code: int = 1
) -> None:
    assert result.returncode == code, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert all(word in result.stderr for word in words), result.stderr


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """A token every 5 ms; a client that left is missed after a second."""
    environment = {"MILLRACE_DISCONNECT_GRACE_S": "1"}
    slow = {"MILLRACE_STUB_STEP_MS": "5"}
    with Cluster(num_batches=1, environment=environment, worker_environment=slow) as started:
        yield started


@pytest.fixture
def tenant(cluster: Cluster, request: pytest.FixtureRequest) -> Tenant:
    return cluster.create_tenant(request.node.name)


@pytest.fixture
def messages_of(cluster: Cluster) -> MessagesOf:
    """What each job of a tenant was asked, as contents of its messages, oldest first."""

    def read(tenant: Tenant) -> list[list[str]]:
        rows = cluster.query(
            "SELECT request FROM job_payloads WHERE tenant_id = %s ORDER BY job_id", (tenant.id,)
        )
        return [[each["content"] for each in row["request"]["messages"]] for row in rows]

    return read


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """Not tmp_path: its parents are closed to the unprivileged user that Postgres runs as."""
    parent = Path(tempfile.mkdtemp(prefix="millrace-state-"))
    parent.chmod(0o755)
    yield parent / "state"
    shutil.rmtree(parent, ignore_errors=True)
