from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from api.limits.pace import MAX_REST_S, ON_TIME_S, RESTS, Pace, TenantPace


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_what_comes_at_once_is_spread_by_its_size_and_what_comes_later_doesnt_wait() -> None:
    clock = Clock()
    pace = Pace(100, clock)

    delays = [pace.delay_s(50), pace.delay_s(200), pace.delay_s(1)]
    clock.now += 60

    assert delays == [0.0, 0.5, 2.5]
    assert pace.delay_s(50) == 0.0


def test_a_late_loop_gets_a_rest_in_proportion_and_no_longer_than_the_bound() -> None:
    clock = Clock()
    on_time, late, very_late = (Pace(100, clock) for _ in range(3))

    on_time.note_begun(clock.now - ON_TIME_S / 2)
    late.note_begun(clock.now - ON_TIME_S - 0.01)
    very_late.note_begun(clock.now - 60)

    assert on_time.delay_s(1) == 0.0
    assert late.delay_s(1) == pytest.approx(RESTS * 0.01)
    assert very_late.delay_s(1) == pytest.approx(MAX_REST_S)


async def test_turns_come_in_the_order_they_were_asked_for() -> None:
    pace, order = Pace(100_000), list[int]()

    async def take(number: int) -> None:
        await pace.turn(1_000)
        order.append(number)

    await asyncio.gather(*(take(number) for number in range(4)))

    assert order == [0, 1, 2, 3]


def test_tenants_dont_wait_for_each_other_and_are_forgotten_when_idle() -> None:
    clock = Clock()
    paces = TenantPace(100, clock)
    busy, other = uuid4(), uuid4()

    paces.of(busy).delay_s(1_000)
    assert paces.of(busy).delay_s(1) == 10.0
    assert paces.of(other).delay_s(1) == 0.0
    assert len(paces) == 2

    clock.now += 60
    paces.of(uuid4()).delay_s(1)
    assert len(paces) == 1


def test_a_queue_with_a_bound_never_grows_beyond_it() -> None:
    clock = Clock()
    pace = Pace(10, clock, max_delay_s=2.0)

    delays = [pace.delay_s(1) for _ in range(100)]

    assert delays[:3] == pytest.approx([0.0, 0.1, 0.2])
    assert max(delays) == pytest.approx(2.0)
    clock.now += 2.1
    assert pace.delay_s(1) == 0.0
