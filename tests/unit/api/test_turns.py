from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from api.limits.turns import Turn, give_back_turn
from store.tenant_gate import TenantGate
from tasks.errors import RateLimitExceeded


async def test_turn_is_taken_once_and_given_back_once() -> None:
    gate, tenant = TenantGate(1, max_wait_s=0.01), uuid4()
    first, second = Turn(gate, tenant), Turn(gate, tenant)

    await first.take()
    await first.take()
    with pytest.raises(RateLimitExceeded):
        await second.take()
    second.give_back()  # has none, and takes nobody else's
    with pytest.raises(RateLimitExceeded):
        await second.take()
    first.give_back()
    first.give_back()

    await second.take()
    with pytest.raises(RateLimitExceeded):
        await first.take()


async def test_requests_of_a_tenant_go_on_in_the_order_they_came() -> None:
    gate, tenant, order = TenantGate(1, max_wait_s=10), uuid4(), list[int]()

    async def work(number: int) -> None:
        turn = Turn(gate, tenant)
        await turn.take()
        order.append(number)
        await asyncio.sleep(0)
        give_back_turn({"turn": turn})

    await asyncio.gather(*(work(number) for number in range(5)))

    assert order == [0, 1, 2, 3, 4]
    assert not gate._lanes


async def test_request_without_a_key_gives_nobodys_turn_back() -> None:
    gate, tenant = TenantGate(1, max_wait_s=0.01), uuid4()
    await Turn(gate, tenant).take()

    give_back_turn({})

    with pytest.raises(RateLimitExceeded):
        await Turn(gate, tenant).take()
