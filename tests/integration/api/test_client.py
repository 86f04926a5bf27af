"""The typed client against a real API, over connections that break."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from millrace import AsyncClient, Client, NotFoundError
from tests.integration.api.conftest import Tenant
from tests.integration.api.producer import Producer, RunningJob


async def test_sync_client_goes_through_every_call(
    api_url: str, tenant: Tenant, producer: Producer
) -> None:
    def use() -> None:
        with Client(api_url, tenant.api_key) as client:
            job = client.jobs.create(model="tiny", prompt="hello", metadata={"a": "b"})
            assert client.jobs.get(job.id).metadata == {"a": "b"}
            running = producer.claim()
            running.say("hi")
            producer.finish(running)
            events = list(client.jobs.events(job.id))
            assert [event.type for event in events] == ["started", "token", "done"]
            assert events[-1].job == client.jobs.get(job.id, wait_s=5)
            assert client.jobs.list(status="completed").data[0].text == "hi"
            assert client.jobs.cancel(job.id).status == "completed"
            assert client.models.list() == (client.models.get("tiny"),)
            assert client.usage.get().currency == "USD"
            with pytest.raises(NotFoundError):
                client.jobs.get("job_" + "0" * 32)

    await asyncio.to_thread(use)


async def test_async_client_waits_for_the_end(
    api_url: str, tenant: Tenant, producer: Producer
) -> None:
    async with AsyncClient(api_url, tenant.api_key) as client:
        job = await client.jobs.create(model="tiny", prompt="hello")
        producer.finish(producer.claim())

        assert (await client.jobs.get(job.id, wait_s=5)).is_terminal


async def test_events_survive_connections_that_break(
    api_url: str, tenant: Tenant, producer: Producer
) -> None:
    async with _breaking_proxy(api_url) as url, AsyncClient(url, tenant.api_key) as client:
        async with AsyncClient(api_url, tenant.api_key) as direct:
            job = await direct.jobs.create(model="tiny", prompt="hello")
        running = producer.claim()
        talking = asyncio.create_task(_talk(running, producer))

        events = [event async for event in client.jobs.events(job.id)]

        await talking
    assert [event.seq for event in events] == list(range(1, 203))
    assert "".join(event.text for event in events) == running.text


async def _talk(running: RunningJob, producer: Producer) -> None:
    for number in range(200):
        running.say(f"{number} ")
        await asyncio.sleep(0.01)
    producer.finish(running)


@asynccontextmanager
async def _breaking_proxy(url: str) -> AsyncIterator[str]:
    """Cuts every connection after 100 to 300 ms, wherever it is in its bytes."""
    target = httpx.URL(url)
    rng = random.Random(7)
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = await asyncio.open_connection(target.host, target.port)
        pumps = asyncio.gather(_pump(reader, upstream[1]), _pump(upstream[0], writer))
        with contextlib.suppress(TimeoutError, OSError):
            await asyncio.wait_for(pumps, rng.uniform(0.1, 0.3))
        for each in (writer, upstream[1]):
            each.transport.abort()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(handle(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(4096):
        writer.write(data)
        await writer.drain()
