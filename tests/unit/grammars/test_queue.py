"""Turns at the one sandbox: fair in time between tenants, bounded, and given up by who goes."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from api.grammars.queue import FairQueue
from tasks.errors import RateLimitExceeded, ServiceUnavailable

MANY, ONE, OTHER = (UUID(int=number) for number in (1, 2, 3))


class Clock:
    """Moved by who has the turn."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Desk:
    """A queue, and in what order tenants had their turns."""

    def __init__(
        self, *, max_waiting: int = 512, max_tenant: int = 64, max_wait_s: float = 60
    ) -> None:
        self.clock = Clock()
        self.queue = FairQueue(
            max_waiting=max_waiting,
            max_tenant=max_tenant,
            max_wait_s=max_wait_s,
            clock=self.clock,
        )
        self.order: list[UUID] = []

    async def have(self, tenant_id: UUID, takes_s: float) -> None:
        await self.queue.enter(tenant_id)
        self.order.append(tenant_id)
        await asyncio.sleep(0)
        self.clock.now += takes_s
        self.queue.leave()

    def come(self, tenant_id: UUID, num: int, takes_s: float) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self.have(tenant_id, takes_s)) for _ in range(num)]


async def test_one_request_waits_for_one_turn_of_hundreds() -> None:
    desk = Desk(max_tenant=300)
    tasks = desk.come(MANY, 300, 1.0)
    await asyncio.sleep(0)

    tasks += desk.come(ONE, 1, 1.0)
    await asyncio.gather(*tasks)

    assert desk.order[:3].count(ONE) == 1
    assert len(desk.order) == 301


async def test_quick_ones_do_not_each_wait_for_a_slow_one() -> None:
    desk = Desk()
    tasks = desk.come(MANY, 20, 1.0) + desk.come(ONE, 16, 0.01)

    await asyncio.gather(*tasks)

    assert desk.order.index(ONE) <= 1
    assert [n for n, tenant_id in enumerate(desk.order) if tenant_id == ONE][-1] == 16


async def test_who_comes_later_has_no_time_saved_up() -> None:
    desk = Desk()
    tasks = desk.come(MANY, 20, 1.0) + desk.come(OTHER, 20, 1.0)
    while len(desk.order) < 11:
        await asyncio.sleep(0)

    tasks += desk.come(ONE, 10, 1.0)
    await asyncio.gather(*tasks)

    behind = desk.order[12:24]
    assert 3 <= behind.count(ONE) <= 5


async def test_those_of_one_tenant_come_in_order_and_all_end() -> None:
    desk = Desk()

    await asyncio.gather(*desk.come(ONE, 5, 0.1))

    assert desk.order == [ONE] * 5
    assert not desk.queue.num_waiting
    assert not desk.queue._used_s


async def test_too_many_of_a_tenant_are_refused_and_too_many_of_all() -> None:
    desk = Desk(max_waiting=3, max_tenant=2)
    await desk.queue.enter(MANY)
    waiting = desk.come(MANY, 2, 0) + desk.come(ONE, 1, 0)
    await asyncio.sleep(0)

    with pytest.raises(RateLimitExceeded):
        await desk.queue.enter(MANY)
    with pytest.raises(ServiceUnavailable):
        await desk.queue.enter(OTHER)

    desk.queue.leave()
    await asyncio.gather(*waiting)


async def test_a_wait_is_bounded_in_time() -> None:
    desk = Desk(max_wait_s=0.01)
    await desk.queue.enter(MANY)

    with pytest.raises(RateLimitExceeded):
        await desk.queue.enter(ONE)

    assert not desk.queue.num_waiting
    desk.queue.leave()
    await desk.have(ONE, 0)


async def test_who_goes_gives_up_its_place_and_its_turn() -> None:
    desk = Desk(max_tenant=1)
    await desk.queue.enter(MANY)
    gone, called = desk.come(MANY, 1, 0) + desk.come(ONE, 1, 0)
    await asyncio.sleep(0)

    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    last = desk.come(MANY, 1, 0)
    await asyncio.sleep(0)
    desk.queue.leave()  # to the next, which goes at the same moment
    called.cancel()
    await asyncio.gather(called, *last, return_exceptions=True)

    assert desk.order == [MANY]
    assert not desk.queue.num_waiting
    await desk.have(OTHER, 0)


async def test_one_cancelled_just_before_its_turn_is_passed_over() -> None:
    desk = Desk()
    await desk.queue.enter(MANY)
    gone, last = desk.come(MANY, 2, 0)
    await asyncio.sleep(0)

    gone.cancel()
    desk.queue.leave()
    await asyncio.gather(gone, last, return_exceptions=True)

    assert desk.order == [MANY]
    await desk.have(OTHER, 0)
