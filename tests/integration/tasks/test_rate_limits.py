"""Counters of rate limits: the same behaviour in Redis, of each version at hand, and in memory."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from uuid import UUID

import pytest
from redis.asyncio import Redis

from api.limits.counters import PAUSE_S, Counters, LocalCounters
from api.services import LIMITS_TIMEOUT_S, redis_client
from tasks.ids import uuid7
from tasks.keys import rate_limits
from tasks.limits import Amounts, Answer, Dimension, Limits, Meter
from tests.integration.tasks.conftest import RedisServer
from tests.support.waiting import until

LOOK = Amounts(0, 0)
NUM_CLIENTS = 8


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Shared:
    """Counters in Redis, whose clock can't be moved: what is kept there is made older instead."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._counters = Counters(redis)

    async def take(self, tenant_id: UUID, limits: Limits, amounts: Amounts) -> Answer:
        return await self._counters.take(tenant_id, limits, amounts)

    async def pass_time(self, tenant_id: UUID, seconds: float) -> None:
        key = rate_limits(tenant_id)
        kept = await self.redis.get(key)
        assert isinstance(kept, bytes)
        at, used = kept.decode().split(maxsplit=1)
        await self.redis.set(key, f"{int(at) - round(seconds * 1e6)} {used}", keepttl=True)


class Local:
    """Counters in memory."""

    def __init__(self) -> None:
        self._clock = Clock()
        self._counters = LocalCounters(self._clock, max_tenants=2)

    async def take(self, tenant_id: UUID, limits: Limits, amounts: Amounts) -> Answer:
        return self._counters.take(tenant_id, limits, amounts)

    async def pass_time(self, tenant_id: UUID, seconds: float) -> None:
        self._clock.now += seconds


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    async with redis_client(redis_server.server.url) as client:
        yield client


@pytest.fixture(params=["redis", "memory"])
def counters(request: pytest.FixtureRequest, redis: Redis) -> Shared | Local:
    return Shared(redis) if request.param == "redis" else Local()


@pytest.fixture
def tenant_id() -> UUID:
    return uuid7()


def requests(answer: Answer) -> Meter:
    assert answer.standing.requests is not None
    return answer.standing.requests


def tokens(answer: Answer) -> Meter:
    assert answer.standing.tokens is not None
    return answer.standing.tokens


# Both ----------------------------------------------------------------------------------------


async def test_a_limit_lets_its_number_through_and_then_one_each_part_of_a_minute(
    counters: Shared | Local, tenant_id: UUID
) -> None:
    limits, one = Limits(requests=7), Amounts(1, 0)

    taken = [await counters.take(tenant_id, limits, one) for _ in range(8)]
    await counters.pass_time(tenant_id, requests(taken[7]).wait_s(1))
    later = [await counters.take(tenant_id, limits, one) for _ in range(2)]

    assert [requests(answer).remaining for answer in taken] == [6, 5, 4, 3, 2, 1, 0, 0]
    assert [answer.refused_by for answer in taken] == [None] * 7 + [Dimension.REQUESTS]
    assert 8.0 < requests(taken[7]).wait_s(1) <= 60 / 7
    assert [answer.refused_by for answer in later] == [None, Dimension.REQUESTS]


async def test_a_refusal_takes_from_neither_limit(
    counters: Shared | Local, tenant_id: UUID
) -> None:
    limits = Limits(requests=3, tokens=100)
    await counters.take(tenant_id, limits, Amounts(1, 90))

    of_tokens = [await counters.take(tenant_id, limits, Amounts(1, 50)) for _ in range(9)]
    await counters.take(tenant_id, limits, Amounts(2, 1))
    of_requests = [await counters.take(tenant_id, limits, Amounts(1, 1)) for _ in range(9)]
    looked = await counters.take(tenant_id, limits, LOOK)

    assert {answer.refused_by for answer in of_tokens} == {Dimension.TOKENS}
    assert {answer.refused_by for answer in of_requests} == {Dimension.REQUESTS}
    assert requests(looked).used == pytest.approx(3, abs=0.3)
    assert tokens(looked).used == pytest.approx(91, abs=9)
    assert tokens(looked).used <= 91


async def test_looking_takes_nothing(counters: Shared | Local, tenant_id: UUID) -> None:
    limits = Limits(requests=2, tokens=100)

    looked = [await counters.take(tenant_id, limits, LOOK) for _ in range(5)]

    assert {(requests(answer).remaining, tokens(answer).remaining) for answer in looked} == {
        (2, 100)
    }


async def test_what_is_given_back_can_be_taken_again_and_no_more(
    counters: Shared | Local, tenant_id: UUID
) -> None:
    limits = Limits(requests=10, tokens=10)
    await counters.take(tenant_id, limits, Amounts(1, 10))

    given = await counters.take(tenant_id, limits, Amounts(0, -8))
    too_much = await counters.take(tenant_id, limits, Amounts(0, -100))

    assert (requests(given).remaining, tokens(given).remaining) == (9, 8)
    assert tokens(too_much) == Meter(10, 0.0)


async def test_all_has_come_back_when_the_reset_is_over(
    counters: Shared | Local, tenant_id: UUID
) -> None:
    limits = Limits(requests=5, tokens=1_000)
    used = await counters.take(tenant_id, limits, Amounts(2, 900))

    await counters.pass_time(tenant_id, max(requests(used).reset_s, tokens(used).reset_s))
    looked = await counters.take(tenant_id, limits, LOOK)

    assert tokens(used).reset_s == 54
    assert looked.standing.used == (0, 0)


async def test_tenants_do_not_touch_each_other(counters: Shared | Local) -> None:
    limits, one = Limits(requests=1), Amounts(1, 0)

    taken = [await counters.take(tenant, limits, one) for tenant in (uuid7(), uuid7())]

    assert [answer.refused_by for answer in taken] == [None, None]


async def test_a_changed_limit_holds_from_the_next_request_on(
    counters: Shared | Local, tenant_id: UUID
) -> None:
    await counters.take(tenant_id, Limits(requests=100), Amounts(50, 0))

    lowered = await counters.take(tenant_id, Limits(requests=10), Amounts(1, 0))
    raised = await counters.take(tenant_id, Limits(requests=100), Amounts(1, 0))
    lifted = await counters.take(tenant_id, Limits(tokens=5), Amounts(1, 1))

    assert lowered.refused_by is Dimension.REQUESTS
    assert requests(lowered).wait_s(1) <= 6
    assert requests(raised).remaining >= 49
    assert lifted.standing.requests is None


# Redis ---------------------------------------------------------------------------------------


async def test_eight_clients_at_once_get_exactly_the_limit(
    redis_server: RedisServer, tenant_id: UUID
) -> None:
    limits = Limits(requests=1_000_000, tokens=12)  # 5 s for a token

    async def ask(counters: Counters) -> int:
        answers = [await counters.take(tenant_id, limits, Amounts(1, 1)) for _ in range(20)]
        return sum(answer.refused_by is None for answer in answers)

    began = time.monotonic()
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(redis_client(redis_server.server.url))
            for _ in range(NUM_CLIENTS)
        ]
        passed = await asyncio.gather(*(ask(Counters(client)) for client in clients))
        looked = await Counters(clients[0]).take(tenant_id, limits, LOOK)
    elapsed_s = time.monotonic() - began

    assert 12 <= sum(passed) <= 12 + int(elapsed_s / 5)
    # The other limit was charged for those alone that passed.
    assert requests(looked).used <= sum(passed)


async def test_a_limit_of_an_hour_is_the_same_sum_of_another_period(
    counters: Shared | Local, tenant_id: UUID
) -> None:
    limits, one = Limits(requests=2, period_s=3_600.0), Amounts(1, 0)

    taken = [await counters.take(tenant_id, limits, one) for _ in range(3)]
    await counters.pass_time(tenant_id, 1_800)
    later = [await counters.take(tenant_id, limits, one) for _ in range(2)]

    refused = [None, None, Dimension.REQUESTS]
    assert [answer.refused_by for answer in taken] == refused
    assert requests(taken[2]).wait_s(1) == pytest.approx(1_800, abs=60)
    assert [answer.refused_by for answer in later] == [None, Dimension.REQUESTS]


async def test_who_comes_again_after_the_time_told_is_let_through(
    redis: Redis, tenant_id: UUID
) -> None:
    counters, limits = Counters(redis), Limits(tokens=6_000)
    await counters.take(tenant_id, limits, Amounts(1, 6_000))
    refused = await counters.take(tenant_id, limits, Amounts(1, 40))
    told_at, wait_s = time.monotonic(), tokens(refused).wait_s(40)
    asked_at: list[float] = []

    async def is_let_through() -> bool:
        asked_at.append(time.monotonic() - told_at)
        answer = await counters.take(tenant_id, limits, Amounts(1, 40))
        return answer.refused_by is None

    await until(is_let_through)

    assert 0.3 < wait_s <= 0.4
    assert all(asked_s < wait_s for asked_s in asked_at[:-1])  # no refusal after that


async def test_counters_leave_redis_when_all_has_come_back(redis: Redis, tenant_id: UUID) -> None:
    counters, limits = Counters(redis), Limits(requests=60, tokens=6_000)

    async def is_gone() -> bool:
        return bool(await redis.exists(rate_limits(tenant_id)) == 0)

    await counters.take(tenant_id, limits, LOOK)
    unused_ms = await redis.pttl(rate_limits(tenant_id))
    await counters.take(tenant_id, limits, Amounts(2, 3_000))
    used_ms = await redis.pttl(rate_limits(tenant_id))
    await counters.take(tenant_id, limits, Amounts(-2, -3_000))
    await until(is_gone, what="the end of the key")

    assert unused_ms == -2
    assert 25_000 < used_ms <= 30_001


async def test_one_round_trip_a_request(redis: Redis, tenant_id: UUID) -> None:
    counters, limits = Counters(redis), Limits(requests=1_000)
    await counters.take(tenant_id, limits, LOOK)  # loads the script
    await redis.config_resetstat()

    for _ in range(10):
        await counters.take(tenant_id, limits, Amounts(1, 0))

    stats = await redis.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] == 10
    assert "cmdstat_eval" not in stats


# Redis away ----------------------------------------------------------------------------------


async def test_without_redis_each_process_holds_tenants_to_their_limits(tenant_id: UUID) -> None:
    limits, one = Limits(requests=5), Amounts(1, 0)
    async with redis_client("redis://127.0.0.1:1/0") as nowhere:
        counters = Counters(nowhere)

        answers = [await counters.take(tenant_id, limits, one) for _ in range(6)]

    assert [answer.refused_by for answer in answers] == [None] * 5 + [Dimension.REQUESTS]


async def test_a_silent_redis_holds_up_one_request_at_a_time_and_is_used_again_when_back(
    redis_server: RedisServer, tenant_id: UUID
) -> None:
    limits, one, clock = Limits(requests=5), Amounts(1, 0), Clock()
    server = redis_server.server.child
    assert server is not None
    async with redis_client(redis_server.server.url, timeout_s=LIMITS_TIMEOUT_S) as client:
        counters = Counters(client, clock)

        async def timed_take() -> tuple[Answer, bool]:
            began = time.monotonic()
            answer = await counters.take(tenant_id, limits, one)
            return answer, time.monotonic() - began > LIMITS_TIMEOUT_S / 2

        await counters.take(tenant_id, limits, Amounts(4, 0))
        server.send(signal.SIGSTOP)
        try:
            first = [await timed_take() for _ in range(10)]
            clock.now += PAUSE_S
            later = await asyncio.gather(*(timed_take() for _ in range(10)))
        finally:
            server.send(signal.SIGCONT)
        clock.now += PAUSE_S
        back = await counters.take(tenant_id, limits, LOOK)

    assert [was_held_up for _, was_held_up in first] == [True] + [False] * 9
    assert sum(was_held_up for _, was_held_up in later) == 1
    assert sum(answer.refused_by is None for answer, _ in first) == 5
    # Both requests that gave up on Redis may have come through late, and one of them fitted.
    assert 3.5 < requests(back).used <= 5


async def test_a_redis_that_lost_everything_counts_on_from_nothing(
    redis_server: RedisServer, tenant_id: UUID
) -> None:
    limits, clock = Limits(requests=5), Clock()
    async with redis_client(redis_server.server.url) as client:
        counters = Counters(client, clock)
        await counters.take(tenant_id, limits, Amounts(5, 0))
        await asyncio.to_thread(redis_server.restart)
        await counters.take(tenant_id, limits, LOOK)  # notes the broken connection
        clock.now += PAUSE_S

        answer = await counters.take(tenant_id, limits, Amounts(1, 0))

    assert requests(answer).remaining == 4


async def test_tenants_that_asked_longest_ago_are_forgotten_in_memory() -> None:
    counters = LocalCounters(Clock(), max_tenants=2)
    first, second, third = (uuid7() for _ in range(3))
    limits, one = Limits(requests=1), Amounts(1, 0)

    for tenant in (first, second, third):
        counters.take(tenant, limits, one)

    assert counters.take(third, limits, one).refused_by
    assert counters.take(first, limits, one).refused_by is None
