"""`take.lua` by a clock that is behind the one the counter was written by, as after a failover."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tasks.limits import (
    PERIOD_S,
    TAKE_SCRIPT,
    Amounts,
    Answer,
    Limits,
    parse_answer,
    take_arguments,
)
from tests.support.services import Services

LIMITS = Limits(requests=60, tokens=6_000)
KEY = "limits"


@pytest.fixture
def client(services: Services) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(services.redis_url) as opened:
        opened.flushall()
        yield opened


def _take(client: redis.Redis, amounts: Amounts) -> Answer:
    reply = client.register_script(TAKE_SCRIPT)(keys=[KEY], args=take_arguments(LIMITS, amounts))
    return parse_answer(LIMITS, reply)


def _used_in(client: redis.Redis, ahead_s: float, requests: int, tokens: int) -> None:
    """Written by a server whose clock is so far ahead."""
    seconds, micros = client.time()
    at = round((seconds + ahead_s) * 1e6) + micros
    client.set(KEY, f"{at} {requests} {tokens}", px=60_000)


@pytest.mark.parametrize("ahead_s", [1.0, PERIOD_S / 2, 3_600.0])
def test_a_clock_that_is_behind_neither_charges_nor_gives_back(
    client: redis.Redis, ahead_s: float
) -> None:
    _used_in(client, ahead_s, 10, 1_000)

    looked = _take(client, Amounts(0, 0))
    taken = _take(client, Amounts(1, 100))

    assert looked.standing.used == Amounts(10, 1_000)
    assert (taken.refused_by, taken.standing.used) == (None, Amounts(11, 1_100))


def test_a_counter_goes_by_the_clock_of_who_took_last(client: redis.Redis) -> None:
    """Else nothing would come back until this clock is where the other one was."""
    _used_in(client, 3_600.0, 10, 1_000)

    _take(client, Amounts(1, 0))

    written_at = int(client.get(KEY).split()[0])  # type: ignore[union-attr]
    seconds, _ = client.time()
    assert written_at <= (seconds + 1) * 1e6
