"""One running server with the demo models, for every client. The clients are stock and unmodified.

Tests of clients that are not among our own dependencies run in the virtual environments of
`make test-compat`; elsewhere they are not collected. The server always runs in our own.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import openai
import pytest

from cli.stack.files import ROOT
from tests.support.cluster import Cluster
from tests.support.member import Tenant

HAS_AGENTS = importlib.util.find_spec("pydantic_ai") is not None
HAS_CLIENTS = importlib.util.find_spec("langchain_tests") is not None
collect_ignore = (
    []
    if HAS_CLIENTS
    else [
        "test_instructor.py",
        "test_langchain.py",
        "test_llama_index.py",
        "test_node.py",
        "test_openapi.py",
    ]
)
if not HAS_AGENTS:
    collect_ignore.append("agents")


@pytest.fixture(scope="session")
def server_python() -> Iterator[None]:
    """Processes are started with the server's own packages, not with those of the clients."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(ROOT / ".venv/bin/python"))
        yield


@pytest.fixture(scope="session")
def catalog() -> Path:
    return ROOT / "catalog.toml"


@pytest.fixture(scope="session")
def cluster(server_python: None, catalog: Path) -> Iterator[Cluster]:
    """The demo models on the CPU."""
    with Cluster(
        catalog=catalog,
        engine="millrace",
        num_batches=1,
        worker_environment={"MILLRACE_NUM_THREADS": "1", "MILLRACE_KV_MEMORY_SHARE": "0.05"},
    ) as started:
        yield started


@pytest.fixture(scope="session")
def tenant(cluster: Cluster) -> Tenant:
    return cluster.create_tenant("acme")


@pytest.fixture(scope="session")
def base_url(cluster: Cluster) -> str:
    """As clients want it."""
    return f"{cluster.url}/v1"


@pytest.fixture
def client(base_url: str, tenant: Tenant) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key=tenant.api_key, timeout=60) as client:
        yield client


@pytest.fixture
async def async_client(base_url: str, tenant: Tenant) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=base_url, api_key=tenant.api_key, timeout=60) as client:
        yield client
