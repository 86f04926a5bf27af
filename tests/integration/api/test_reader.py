"""One reader on a real log, asked step by step: nothing wakes it or gives it a second chance."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from api.long_work import LongWork
from api.services import redis_client
from api.streams.channel import Channel
from api.streams.reader import BATCH_SIZE, Reader, Sources
from cli.stack.database import DatabaseUrls
from store.jobs import get_job
from store.pools import async_pool
from store.tenant_gate import TenantGate
from tasks import keys
from tests.integration.api.conftest import Tenant
from tests.integration.api.producer import Producer, RunningJob
from tests.support.services import Services


@pytest.fixture
async def reader(
    database: DatabaseUrls, services: Services, tenant: Tenant, running: RunningJob
) -> AsyncIterator[Reader]:
    """From the beginning of a running job, on a channel that Redis has acknowledged."""
    redis, long_work = redis_client(services.redis_url), LongWork()
    async with async_pool(database.api, application_name="test", max_size=1) as pool:
        row = await get_job(pool, tenant.id, running.job_id)
        assert row is not None
        reader = Reader(Sources(pool, redis, long_work, TenantGate(8, 5.0)), row, 0)
        channel = Channel(running.job_id, 0.0)
        channel.is_subscribed = True
        reader.attach(channel, 0.0)
        yield reader
    await redis.aclose()
    long_work.close()


async def _read(reader: Reader) -> list[int]:
    """Until it has nothing more to say by itself."""
    numbers: list[int] = []
    while events := await reader.next():
        numbers += [event.seq for event in events]
    return numbers


@pytest.mark.parametrize("num_tokens", [BATCH_SIZE - 1, BATCH_SIZE, 3 * BATCH_SIZE])
async def test_a_log_is_read_to_its_end_however_long(
    reader: Reader, running: RunningJob, num_tokens: int
) -> None:
    for number in range(num_tokens):
        running.add_token(f"{number} ")
    running.publish(count=num_tokens)

    assert await _read(reader) == list(range(1, num_tokens + 2))


async def test_a_log_without_what_follows_the_cursor_is_waited_for(
    reader: Reader, producer: Producer, running: RunningJob
) -> None:
    for number in range(6):
        running.say(f"{number} ")
    producer.redis.xtrim(keys.stream_log(running.job_id), minid="4-0", approximate=False)

    before = await _read(reader)
    running.publish_all_again()
    reader.note_log_may_have_more()

    assert before == []
    assert await _read(reader) == list(range(1, 8))
