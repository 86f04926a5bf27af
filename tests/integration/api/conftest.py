"""A running API on a database of its own, with two tenants and a catalog of one tiny model."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.prompts import registry
from cli.stack.database import DatabaseUrls
from store.catalog import apply_catalog
from store.pools import DictConnection, connect
from store.tenants import create_api_key, create_tenant
from tasks.app import app as celery
from tests.integration.api.producer import Producer, RunningJob
from tests.integration.api.readers import create_job
from tests.support.services import Services
from tests.support.tiny_tokenizer import write_model_folder

PEPPER = "a pepper for tests"
CONTEXT_LENGTH = 256

CATALOG = """
[models.tiny]
source = "tiny"
max_output_tokens = 128
prices.priority = { input_micros = 4000000, cached_micros = 400000, output_micros = 8000000 }
prices.default = { input_micros = 2000000, cached_micros = 200000, output_micros = 4000000 }
prices.flex = { input_micros = 1000000, cached_micros = 100000, output_micros = 2000000 }
prices.batch = { input_micros = 500000, cached_micros = 50000, output_micros = 1000000 }
"""


@dataclass(frozen=True)
class Tenant:
    """A tenant and its key."""

    id: UUID
    api_key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"}


@pytest.fixture(scope="session")
def catalog_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalog")
    write_model_folder(folder / "tiny", context_length=CONTEXT_LENGTH)
    (folder / "catalog.toml").write_text(CATALOG)
    return folder / "catalog.toml"


@pytest.fixture
def owner(database: DatabaseUrls) -> Iterator[DictConnection]:
    """A connection that sees everything."""
    with connect(database.owner, application_name="test") as connection:
        yield connection


@pytest.fixture
def files_folder(tmp_path: Path) -> Path:
    """Where the API keeps the contents of files."""
    return tmp_path / "files"


@pytest.fixture
def environment(
    database: DatabaseUrls,
    services: Services,
    files_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the API process is told."""
    monkeypatch.setenv("MILLRACE_DATABASE_URL", database.api)
    monkeypatch.delenv("MILLRACE_DATABASE_URL_API", raising=False)
    monkeypatch.setenv("MILLRACE_REDIS_URL", services.redis_url)
    monkeypatch.setenv("MILLRACE_KEY_PEPPER", PEPPER)
    monkeypatch.setenv("MILLRACE_FILES_URL", str(files_folder))
    monkeypatch.setattr(registry, "CATALOG_REFRESH_S", 0.5)
    celery.conf.update(broker_url=services.redis_url)


@pytest.fixture
def catalog(owner: DictConnection, catalog_file: Path) -> None:
    apply_catalog(owner, catalog_file)


def new_tenant(owner: DictConnection, name: str, *, credit_micros: int = 10_000_000) -> Tenant:
    tenant_id = create_tenant(owner, name=name, credit_micros=credit_micros)
    key = create_api_key(owner, tenant_id=tenant_id, name="test", pepper=PEPPER.encode())
    return Tenant(tenant_id, key)


@pytest.fixture
def tenant(owner: DictConnection) -> Tenant:
    return new_tenant(owner, "acme")


@pytest.fixture
def other_tenant(owner: DictConnection) -> Tenant:
    return new_tenant(owner, "globex")


# By what an app knows from its making on: which pages may call it.
_idle_apps: defaultdict[str, list[FastAPI]] = defaultdict(list)


@contextmanager
def an_app() -> Iterator[FastAPI]:
    """One that no server has now. FastAPI prepares the routes of each anew, which takes longer than
    most tests; its services are opened by each server.
    """
    idle = _idle_apps[os.environ.get("MILLRACE_CORS_ORIGINS", "")]
    app = idle.pop() if idle else create_app()
    yield app
    app.middleware_stack = None  # built by the next start
    idle.append(app)


@asynccontextmanager
async def serve_api() -> AsyncIterator[str]:
    """A real server on a free port, in this event loop."""
    with an_app() as app:
        async with _serve(app) as url:
            yield url


@asynccontextmanager
async def _serve(app: FastAPI) -> AsyncIterator[str]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, access_log=False)
    server = uvicorn.Server(config)
    # The test runner keeps its own signal handlers.
    server.capture_signals = nullcontext  # type: ignore[assignment,method-assign]
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            if task.done():
                task.result()
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()


@pytest.fixture
async def api_url(environment: None, catalog: None) -> AsyncIterator[str]:
    async with serve_api() as url:
        yield url


@pytest.fixture
async def http(api_url: str, tenant: Tenant) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the first tenant."""
    async with httpx.AsyncClient(
        base_url=api_url, headers=tenant.headers, timeout=30, trust_env=False
    ) as client:
        yield client


@pytest.fixture
async def client(api_url: str, tenant: Tenant) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's own client of the first tenant."""
    async with openai.AsyncOpenAI(
        base_url=f"{api_url}/v1",
        api_key=tenant.api_key,
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
    ) as opened:
        yield opened


@pytest.fixture
def producer(database: DatabaseUrls, services: Services) -> Iterator[Producer]:
    """Stands for an inference worker."""
    with Producer(database.worker, services.redis_url) as producer:
        yield producer


@pytest.fixture
async def running(http: httpx.AsyncClient, producer: Producer) -> RunningJob:
    """A job that the producer has claimed and started."""
    await create_job(http)
    return producer.claim()
