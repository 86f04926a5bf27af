from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from store.tenant_gate import MAX_BUSY, ON_TIME_S, PRESENCE_S, Spacing, TenantGate
from tasks.errors import RateLimitExceeded
from tests.support.waiting import until

NEVER = Spacing(look_s=60, max_s=60)
AT_ONCE = Spacing(look_s=0.001, max_s=0.001)


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


async def test_the_patient_wait_as_long_as_it_takes() -> None:
    gate, tenant = TenantGate(1, max_wait_s=0.01), uuid4()
    await gate.enter(tenant)
    patient = asyncio.create_task(gate.enter(tenant, is_patient=True))

    with pytest.raises(RateLimitExceeded):
        await gate.enter(tenant)

    assert not patient.done()
    gate.leave(tenant)
    await patient
    gate.leave(tenant)
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


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


async def _begun(gate: TenantGate, tenant: UUID, num: int) -> int:
    """How many of `num` have a turn at once. The rest waits."""
    free, order = asyncio.Event(), list[UUID]()
    tasks = [asyncio.create_task(_hold(gate, tenant, free, order)) for _ in range(num)]
    for _ in range(num):
        await asyncio.sleep(0)
    num_begun = len(order)
    free.set()
    await asyncio.gather(*tasks)
    assert len(order) == num
    return num_begun


async def test_turns_are_spaced_while_others_are_there() -> None:
    clock, many, one = Clock(), uuid4(), uuid4()
    gate = TenantGate(4, max_wait_s=10, spacing=NEVER, clock=clock)

    alone = await _begun(gate, many, 6)
    await _begun(gate, one, 1)
    beside = await _begun(gate, many, 6)
    clock.now += PRESENCE_S
    still_beside = await _begun(gate, many, 6)
    clock.now += 0.1
    alone_again = await _begun(gate, many, 6)

    assert (alone, beside, still_beside, alone_again) == (4, 1, 1, 4)
    assert not gate._lanes


@pytest.mark.parametrize(
    ("late_s", "busy", "begun_s_ago", "begins"),
    [
        (0.0, 0.0, 0, True),
        (ON_TIME_S, MAX_BUSY, 0, True),
        (2 * ON_TIME_S, 0.0, 0, False),
        (0.0, 2 * MAX_BUSY, 0, False),
        (2 * ON_TIME_S, 2 * MAX_BUSY, 2, True),
    ],
    ids=["idle", "at its bounds", "late", "busy", "busy for long"],
)
async def test_a_turn_begins_beside_another_when_the_loop_has_time(
    late_s: float, busy: float, begun_s_ago: float, *, begins: bool
) -> None:
    clock, cpu_clock, many = Clock(), Clock(), uuid4()
    spacing = Spacing(look_s=0.01, max_s=1)
    gate = TenantGate(2, max_wait_s=10, spacing=spacing, clock=clock, cpu_clock=cpu_clock)
    await _begun(gate, uuid4(), 1)
    await gate.enter(many)
    clock.now += begun_s_ago
    waiting = asyncio.create_task(gate.enter(many))
    await asyncio.sleep(0)
    timer = gate._lanes[many].timer
    assert timer is not None
    timer.cancel()
    assert not waiting.done(), "the loop has to be looked at before"

    seconds = spacing.look_s + late_s
    clock.now += seconds
    cpu_clock.now += busy * seconds
    gate._look(many, gate._lanes[many], 1_000.0 + begun_s_ago, 1_000.0)
    await asyncio.sleep(0)

    assert waiting.done() == begins
    gate.leave(many)
    await waiting
    gate.leave(many)
    assert not gate._lanes


async def test_those_who_wait_get_the_turns_that_others_leave_them() -> None:
    clock, many, one = Clock(), uuid4(), uuid4()
    gate = TenantGate(3, max_wait_s=10, spacing=NEVER, clock=clock)
    order, free = list[UUID](), [asyncio.Event() for _ in range(5)]
    await _begun(gate, one, 1)
    tasks = [asyncio.create_task(_hold(gate, many, event, order)) for event in free]
    for _ in free:
        await asyncio.sleep(0)
    assert len(order) == 1

    clock.now += PRESENCE_S + 1
    free[0].set()
    for _ in range(10):
        await asyncio.sleep(0)

    assert len(order) == 1 + 3
    for event in free:
        event.set()
    await asyncio.gather(*tasks)
    assert not gate._lanes


async def test_who_is_let_in_and_leaves_at_the_same_moment_keeps_no_turn() -> None:
    gate, free, order = TenantGate(1, max_wait_s=10), asyncio.Event(), list[UUID]()
    tenant = uuid4()
    await gate.enter(tenant)
    waiter = asyncio.create_task(_hold(gate, tenant, free, order))
    await asyncio.sleep(0)

    gate.leave(tenant)  # lets the waiter in
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter

    assert not order
    assert not gate._lanes


async def test_long_ones_hold_up_no_others_of_their_tenant() -> None:
    gate, many = TenantGate(3, max_wait_s=10, spacing=AT_ONCE), uuid4()
    order, free = list[UUID](), asyncio.Event()
    await _begun(gate, uuid4(), 1)

    tasks = [asyncio.create_task(_hold(gate, many, free, order)) for _ in range(5)]
    await until(lambda: len(order) == 3)
    await until(lambda: gate._lanes[many].timer is None)

    assert len(order) == 3, "no more than alone"
    free.set()
    await asyncio.gather(*tasks)
    assert len(order) == 5
    assert not gate._lanes


async def test_short_ones_go_one_after_the_other() -> None:
    gate, many = TenantGate(3, max_wait_s=10, spacing=NEVER), uuid4()
    at_once, most = 0, 0
    await _begun(gate, uuid4(), 1)

    async def work() -> None:
        nonlocal at_once, most
        async with gate.turn(many):
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0)
            at_once -= 1

    await asyncio.gather(*(work() for _ in range(50)))

    assert most == 1
    assert not gate._lanes


async def test_nobody_is_looked_for_when_all_have_left() -> None:
    gate, many = TenantGate(3, max_wait_s=10, spacing=NEVER), uuid4()
    order, free = list[UUID](), asyncio.Event()
    await _begun(gate, uuid4(), 1)
    tasks = [asyncio.create_task(_hold(gate, many, free, order)) for _ in range(2)]
    for _ in range(3):
        await asyncio.sleep(0)
    timer = gate._lanes[many].timer
    assert timer is not None
    assert not timer.cancelled()

    free.set()
    await asyncio.gather(*tasks)

    assert timer.cancelled(), "it would look at a lane that is no more"
