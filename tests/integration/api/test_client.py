"""The typed client against a real API, over connections that break."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from millrace import AsyncClient, Client, NotFoundError
from tests.integration.api.conftest import Tenant
from tests.integration.api.producer import Producer, RunningJob
from tests.support.breaking_proxy import breaking_proxy


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


async def test_files_go_there_and_back(api_url: str, tenant: Tenant, tmp_path: Path) -> None:
    source, target = tmp_path / "source.bin", tmp_path / "target.bin"
    source.write_bytes(random.Random(3).randbytes(3_000_000))
    seen: list[tuple[int, int]] = []

    async with AsyncClient(api_url, tenant.api_key) as client:
        file = await client.files.upload(
            source,
            purpose="user_data",
            expires_after_s=7200,
            progress=lambda *now: seen.append(now),
        )
        assert (await client.files.get(file.id)).expires_at == file.created_at + 7200
        assert (await client.files.list(purpose="user_data")).data == (file,)
        assert await client.files.download(file.id, target) == target
        assert await client.files.delete(file.id)
        with pytest.raises(NotFoundError):
            await client.files.download(file.id, target)

    assert target.read_bytes() == source.read_bytes()
    assert seen[-1] == (3_000_000, 3_000_000)


async def test_estimate_has_a_price_for_each_tier(api_url: str, tenant: Tenant) -> None:
    async with AsyncClient(api_url, tenant.api_key) as client:
        found = await client.estimate(model="tiny", prompt="hello", max_tokens=10)

    assert (found.model, found.output_tokens) == ("tiny", None)
    assert set(found.cost) == {"priority", "default", "flex", "batch"}
    assert found.cost["flex"].max_micros


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
    async with breaking_proxy(api_url) as url, AsyncClient(url, tenant.api_key) as client:
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
