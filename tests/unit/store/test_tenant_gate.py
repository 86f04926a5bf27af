from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from store.tenant_gate import TenantGate
from tasks.errors import RateLimitExceeded


async def _hold(gate: TenantGate, tenant: UUID, free: asyncio.Event, order: list[UUID]) -> None:
    async with gate.turn(tenant):
        order.append(tenant)
        await free.wait()


async def test_one_tenant_waits_behind_itself_and_another_does_not() -> None:
    gate, free, order = TenantGate(2, max_wait_s=10), asyncio.Event(), list[UUID]()
    many, one = uuid4(), uuid4()

    tasks = [asyncio.create_task(_hold(gate, many, free, order)) for _ in range(5)]
    tasks += [asyncio.create_task(_hold(gate, one, free, order))]
    for _ in range(5):
        await asyncio.sleep(0)

    assert order == [many, many, one]
    free.set()
    await asyncio.gather(*tasks)
    assert order.count(many) == 5
    assert not gate._lanes


async def test_wait_is_bounded_and_costs_no_turn() -> None:
    gate, free, order = TenantGate(1, max_wait_s=0.05), asyncio.Event(), list[UUID]()
    tenant = uuid4()
    holder = asyncio.create_task(_hold(gate, tenant, free, order))
    await asyncio.sleep(0)

    with pytest.raises(RateLimitExceeded):
        async with gate.turn(tenant):
            raise AssertionError("nobody has left")

    free.set()
    await holder
    async with gate.turn(tenant):
        pass
    assert not gate._lanes


async def test_failure_and_cancellation_give_turns_back() -> None:
    gate, free, order = TenantGate(1, max_wait_s=10), asyncio.Event(), list[UUID]()
    tenant = uuid4()
    with pytest.raises(ValueError, match="mine"):
        async with gate.turn(tenant):
            raise ValueError("mine")
    holder = asyncio.create_task(_hold(gate, tenant, free, order))
    waiter = asyncio.create_task(_hold(gate, tenant, free, order))
    await asyncio.sleep(0)

    for task in (waiter, holder):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert not gate._lanes
