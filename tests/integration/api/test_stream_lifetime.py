"""How streams end other than with `done`, and what an open one costs."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import uvicorn
from fastapi import FastAPI

from api import submitting
from api.app import create_app
from api.garbage import FEW, Collector
from api.services import Services
from api.streams import sse
from cli.stack.child import spawn
from store.pools import DictConnection
from tests.integration.api.conftest import Tenant
from tests.integration.api.producer import Producer
from tests.support.waiting import until

BODY = {"model": "tiny", "prompt": "hello", "max_tokens": 100}
ROOT = Path(__file__).resolve().parents[3]


@dataclass
class RunningApp:
    """An API in this event loop, with a look inside."""

    app: FastAPI
    url: str

    @property
    def services(self) -> Services:
        services: Services = self.app.state.services
        return services

    @property
    def num_listeners(self) -> int:
        channels = self.services.hub._channels.values()
        return sum(len(channel.listeners) for channel in channels)


@pytest.fixture
async def running(environment: None, catalog: None) -> AsyncIterator[RunningApp]:
    app = create_app()
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve([listener]))
    await until(lambda: server.started or task.done())
    yield RunningApp(app, f"http://127.0.0.1:{listener.getsockname()[1]}")
    server.should_exit = True
    await task


@pytest.fixture
async def client(running: RunningApp, tenant: Tenant) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=running.url, headers=tenant.headers, timeout=30
    ) as client:
        yield client


async def test_client_that_leaves_is_let_go_at_once(
    running: RunningApp, client: httpx.AsyncClient
) -> None:
    url = await _create(client)

    async with client.stream("GET", url) as answer:
        chunks = answer.aiter_raw()  # its end would close the connection
        await anext(chunks)
        assert running.num_listeners == 1

    await until(lambda: running.num_listeners == 0, timeout_s=0.5)
    await until(lambda: running.services.hub.num_channels == 0, timeout_s=3)


async def test_heartbeat_is_one_line_that_dispatches_nothing(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.5)
    url = await _create(client)

    async with client.stream("GET", url) as answer:
        chunks = answer.aiter_raw()
        first = await anext(chunks)
        second = await anext(chunks)

    assert first.startswith(b"event: queued\nretry: 1000\n")
    assert second == b":\n"


async def test_reader_that_stops_reading_is_cut_off(
    running: RunningApp, client: httpx.AsyncClient, producer: Producer,
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(sse, "SEND_TIMEOUT_S", 1.0)
    url = await _create(client)
    job = producer.claim()
    with _connect_without_reading(running.url, url, tenant):
        await until(lambda: running.num_listeners == 1)

        async with asyncio.timeout(20):
            while running.num_listeners:
                job.say("x" * 50_000)
                await asyncio.sleep(0.005)


async def test_stream_ends_at_its_greatest_age(
    client: httpx.AsyncClient, owner: DictConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitting, "STREAM_GRACE_S", 0.5)
    url = await _create(client)
    owner.execute("UPDATE jobs SET deadline_at = now()")

    async with asyncio.timeout(10):
        answer = await client.get(url)

    assert b"event: queued" in answer.content
    assert b"event: done" not in answer.content


async def test_more_streams_than_allowed_are_refused(
    running: RunningApp, client: httpx.AsyncClient
) -> None:
    running.services.streams._max_streams = 1
    url = await _create(client)

    async with client.stream("GET", url) as answer:
        chunks = answer.aiter_raw()  # its end would close the connection
        await anext(chunks)
        refused = await client.get(url)

    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"


async def test_more_waiting_requests_of_a_key_than_allowed_are_refused_before_admission(
    running: RunningApp, client: httpx.AsyncClient, owner: DictConnection
) -> None:
    running.services.waiting_requests._max_key = 1
    url = await _create(client)
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}

    async with client.stream("GET", url) as answer:
        chunks = answer.aiter_raw()  # its end would close the connection
        await anext(chunks)
        refused = [
            await client.get(url),
            await client.get(url.removesuffix("/events"), params={"wait_s": 5}),
            await client.post("/v1/jobs", json=BODY, params={"wait_s": 5}),
            await client.post("/v1/chat/completions", json=chat),
            await client.post("/v1/responses", json={"model": "tiny", "input": "hello"}),
        ]
        job = owner.execute("SELECT count(*) AS n FROM jobs").fetchone()
        others = [
            await client.get(url.removesuffix("/events")),
            await client.post("/v1/jobs", json=BODY),
            await client.post(url.removesuffix("events") + "cancel"),
        ]

    for answer_ in refused:
        assert (answer_.status_code, answer_.headers["retry-after"]) == (429, "1")
        assert answer_.json()["error"]["code"] == "rate_limit_exceeded"
    assert job == {"n": 1}
    assert [answer_.status_code for answer_ in others] == [200, 202, 200]
    await until(lambda: not running.services.waiting_requests._of_keys)
    await until(lambda: not running.services.open_requests._of_keys)


async def test_one_tenants_requests_wait_behind_its_own_and_another_tenant_does_not(
    running: RunningApp, client: httpx.AsyncClient, tenant: Tenant, other_tenant: Tenant
) -> None:
    url, turns = await _create(client), running.services.turns
    turns._max_turns = 1
    await turns.enter(tenant.id)

    waiting = [
        asyncio.create_task(client.get("/v1/jobs")),
        asyncio.create_task(client.get(url.removesuffix("/events"))),
        asyncio.create_task(client.post("/v1/jobs", json=BODY)),
        # A body that no route reads makes no way around.
        asyncio.create_task(client.request("GET", "/v1/jobs", content=b"x")),
        asyncio.create_task(client.post(url.replace("/events", "/cancel"), content=b"x")),
    ]
    await until(lambda: len(turns._lanes[tenant.id].waiting) == 5)
    answered = [
        await client.get("/v1/jobs", headers=other_tenant.headers),
        await client.post("/v1/jobs", json=BODY, headers=other_tenant.headers),
    ]
    assert not any(task.done() for task in waiting)
    turns.leave(tenant.id)

    assert [answer.status_code for answer in answered] == [200, 202]
    assert [(await task).status_code for task in waiting] == [200, 200, 202, 200, 200]
    assert not turns._lanes


async def test_what_waits_for_a_job_keeps_no_turn(
    running: RunningApp, client: httpx.AsyncClient
) -> None:
    url, turns = await _create(client), running.services.turns
    turns._max_turns = 1
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    job = url.removesuffix("/events")

    async with client.stream("GET", url) as answer:
        chunks = answer.aiter_raw()  # its end would close the connection
        await anext(chunks)
        waiting = [
            asyncio.create_task(client.get(job, params={"wait_s": 60})),
            asyncio.create_task(client.post("/v1/jobs", json=BODY, params={"wait_s": 60})),
            asyncio.create_task(client.post("/v1/chat/completions", json=chat)),
        ]
        await until(lambda: len(running.services.hub._channels) == 3 and not turns._lanes)
        polled = await client.get(job)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)

    assert polled.status_code == 200


async def test_what_has_waited_goes_on_in_its_tenants_turn_however_late(
    running: RunningApp, client: httpx.AsyncClient, tenant: Tenant
) -> None:
    job, turns = (await _create(client)).removesuffix("/events"), running.services.turns
    turns._max_turns, turns._max_wait_s = 1, 0.05
    waiting = asyncio.create_task(client.get(job, params={"wait_s": 0.2}))
    await until(lambda: len(running.services.hub._channels) == 1 and not turns._lanes)
    await turns.enter(tenant.id)

    await until(lambda: len(turns._lanes[tenant.id].waiting) == 1)
    refused = await client.get(job)  # as it would be by now

    assert refused.status_code == 429
    assert not waiting.done()
    turns.leave(tenant.id)
    assert (await waiting).status_code == 200


async def test_nothing_waits_for_a_client_that_has_gone(
    running: RunningApp, client: httpx.AsyncClient
) -> None:
    job = (await _create(client)).removesuffix("/events")
    channels, places = running.services.hub._channels, running.services.waiting_requests
    waiting = [
        asyncio.create_task(client.get(job, params={"wait_s": 60})),
        asyncio.create_task(client.post("/v1/jobs", json=BODY, params={"wait_s": 60})),
    ]
    await until(lambda: len(channels) == 2)

    for task in waiting:
        task.cancel()  # closes its connection
    await asyncio.gather(*waiting, return_exceptions=True)

    await until(lambda: not channels and not places._of_tenants)
    assert {row["status"] for row in (await client.get("/v1/jobs")).json()["data"]} == {"queued"}


async def test_an_idle_stream_is_one_task_and_little_memory(
    running: RunningApp, client: httpx.AsyncClient, tenant: Tenant
) -> None:
    num_streams = 400
    url = await _create(client)
    with ExitStack() as stack:
        stack.enter_context(_connect_without_reading(running.url, url, tenant))
        await until(lambda: running.num_listeners == 1)  # what is loaded once is loaded now
        num_tasks, memory = len(asyncio.all_tasks()), _memory()

        for _ in range(num_streams):
            stack.enter_context(_connect_without_reading(running.url, url, tenant))
        await until(lambda: running.num_listeners == num_streams + 1, timeout_s=30)
        await until(lambda: len(asyncio.all_tasks()) - num_tasks <= num_streams + 5)

        kib = (_memory() - memory) / num_streams / 1024
    print(f"{kib:.1f} KiB a stream, client socket included")
    assert kib < 100


async def test_what_ended_streams_leave_to_the_collector_is_found_again(
    running: RunningApp, client: httpx.AsyncClient, tenant: Tenant
) -> None:
    url = await _create(client)
    streams = running.services.streams
    with ExitStack() as stack:
        stack.enter_context(_connect_without_reading(running.url, url, tenant))
        await until(lambda: running.num_listeners == 1)  # what is loaded once is loaded now
        gc.collect()
        gc.freeze()
        num_before = gc.get_freeze_count()
        collector = Collector(max_left=100)
        for _ in range(2 * FEW):
            collector.enter()
            stack.callback(collector.leave)
            stack.enter_context(_connect_without_reading(running.url, url, tenant))
        await until(lambda: running.num_listeners == 2 * FEW + 1, timeout_s=30)

        collector.look()
        num_open = gc.get_freeze_count()
        collector.sweep()
        assert abs(gc.get_freeze_count() - num_open) < FEW, "open ones are not gone through again"

    await until(lambda: not streams.num_open)
    await until(lambda: gc.get_freeze_count() - num_before < 20 * 2 * FEW, timeout_s=10)
    collector.sweep()
    assert num_open - num_before > 50 * 2 * FEW
    assert gc.get_freeze_count() - num_before < 10 * FEW


def _memory() -> int:
    gc.collect()
    resident: int = psutil.Process().memory_info().rss
    return resident


async def test_sigterm_ends_streams_so_that_clients_resume_elsewhere(
    database: object, environment: None, catalog: None, tenant: Tenant, tmp_path: Path
) -> None:
    async with _api_process(tmp_path) as (process, url):
        async with httpx.AsyncClient(base_url=url, headers=tenant.headers, timeout=20) as client:
            path = await _create(client)
            async with client.stream("GET", path) as answer:
                chunks = answer.aiter_raw()
                await anext(chunks)
                process.send_signal(signal.SIGTERM)
                rest = [chunk async for chunk in chunks]

        exit_code = await asyncio.to_thread(process.wait, 5)

    assert rest == []
    assert exit_code in (0, -signal.SIGTERM)  # uvicorn raises the signal again when it has ended


@asynccontextmanager
async def _api_process(folder: Path) -> AsyncIterator[tuple[psutil.Process, str]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    child = spawn(
        [sys.executable, "-m", "api.server", "--port", str(port)],
        env=dict(os.environ),
        log_path=folder / "api.log",
        cwd=ROOT,
        death_signal=signal.SIGKILL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient() as client, asyncio.timeout(30):
            while not await _answers(client, url):
                await asyncio.sleep(0.05)
        yield psutil.Process(child.pid), url
    finally:
        child.stop(signal.SIGKILL, grace_s=5)


async def _answers(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(f"{url}/livez")).is_success
    except httpx.TransportError:
        return False


def _connect_without_reading(url: str, path: str, tenant: Tenant) -> socket.socket:
    address = httpx.URL(url)
    connection = socket.create_connection((address.host, address.port or 80))
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\n"
    request += "".join(f"{name}: {value}\r\n" for name, value in tenant.headers.items())
    connection.sendall(f"{request}\r\n".encode())
    return connection


async def _create(client: httpx.AsyncClient) -> str:
    answer = await client.post("/v1/jobs", json=BODY)
    url: str = answer.json()["events_url"]
    return url
