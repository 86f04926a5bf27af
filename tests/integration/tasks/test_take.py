"""`take.lua` on counters as they were left, also by a clock that was ahead, as after a failover."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tasks.limits import (
    PERIOD_S,
    TAKE_SCRIPT,
    Amounts,
    Answer,
    Dimension,
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


def _take(client: redis.Redis, amounts: Amounts, limits: Limits = LIMITS) -> Answer:
    reply = client.register_script(TAKE_SCRIPT)(keys=[KEY], args=take_arguments(limits, amounts))
    return parse_answer(limits, reply)


def _now_us(client: redis.Redis) -> int:
    seconds, micros = client.time()
    return int(seconds) * 1_000_000 + int(micros)


def _used_in(client: redis.Redis, ahead_s: float, requests: int, tokens: int) -> None:
    """Written by a server whose clock is so far ahead."""
    at = _now_us(client) + round(ahead_s * 1e6)
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

    before = _now_us(client)
    _take(client, Amounts(1, 0))

    written_at = int(client.get(KEY).split()[0])  # type: ignore[union-attr]
    assert before <= written_at <= _now_us(client)


def test_looking_leaves_a_counter_as_it_is(client: redis.Redis) -> None:
    _used_in(client, -1.0, 10, 1_000)
    kept = client.get(KEY)

    looked = _take(client, Amounts(0, 0))

    assert client.get(KEY) == kept
    assert looked.standing.used.requests == pytest.approx(9, abs=0.9)


@pytest.mark.parametrize(
    ("tokens_used", "refused_by"),
    [(85, Dimension.REQUESTS), (90, Dimension.REQUESTS), (95, Dimension.TOKENS)],
)
def test_of_two_refusals_the_one_that_takes_longer_is_named(
    client: redis.Redis, tokens_used: int, refused_by: Dimension
) -> None:
    """As tasks.limits.take names it."""
    _used_in(client, 3_600.0, 10, tokens_used)

    answer = _take(client, Amounts(1, 20), Limits(requests=10, tokens=100))

    assert answer.refused_by is refused_by


@pytest.mark.parametrize(
    ("before", "limits"),
    [
        (Limits(tokens=5), Limits(requests=3, tokens=5)),
        (Limits(requests=5), Limits(requests=5, tokens=3)),
    ],
)
def test_of_a_new_limit_nothing_is_used(
    client: redis.Redis, before: Limits, limits: Limits
) -> None:
    _take(client, Amounts(2, 2), before)

    looked = _take(client, Amounts(0, 0), limits)

    assert sorted(looked.standing.used) == [0, pytest.approx(2, abs=0.5)]


@pytest.mark.parametrize("limits", [Limits(requests=1), Limits(tokens=1)])
def test_a_limit_of_one_lets_one_through(client: redis.Redis, limits: Limits) -> None:
    answers = [_take(client, Amounts(1, 1), limits) for _ in range(2)]

    assert [answer.refused_by is None for answer in answers] == [True, False]
