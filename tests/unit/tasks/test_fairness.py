"""The order of queues: weights of tiers under a backlog, turns of lanes, kombu's contract."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from kombu.utils.scheduling import cycle_by_name

from tasks.fairness import TIER_WEIGHTS, VirtualTokenCycle
from tasks.queues import BILLING, ServiceTier, queue_for, queues_of_pool, tier_of_queue
from tasks.settings import broker_transport_options

ALL = [queue.name for queue in queues_of_pool("default")]


def lane(tier: ServiceTier, number: int = 0) -> str:
    return str(queue_for("default", tier, number).name)


def cycle_of(queues: Sequence[str]) -> VirtualTokenCycle:
    cycle = VirtualTokenCycle()
    cycle.update(queues)
    return cycle


def serve(
    cycle: VirtualTokenCycle, num: int, has_message: Callable[[str], bool] = lambda _: True
) -> list[str]:
    """What BRPOP delivers: each time the first queue in order that has a message."""
    served = []
    for _ in range(num):
        first = next(name for name in cycle.consume(len(cycle.items)) if has_message(name))
        served.append(cycle.rotate(first))
    return served


def tiers(served: list[str]) -> Counter[ServiceTier | None]:
    return Counter(tier_of_queue(name) for name in served)


def test_backlogged_tiers_are_served_by_weight() -> None:
    cycle = cycle_of(ALL)

    counts = tiers(serve(cycle, 270))

    for tier, weight in TIER_WEIGHTS.items():
        assert counts[tier] == pytest.approx(10 * weight, abs=1)


def test_backlogged_tier_waits_at_most_its_weights_share_of_a_round() -> None:
    cycle = cycle_of(ALL)

    served = [tier_of_queue(name) for name in serve(cycle, 540)]

    waits = [i for i, tier in enumerate(served) if tier is ServiceTier.BATCH]
    assert all(later - earlier <= 28 for earlier, later in pairwise(waits))


def test_idle_tier_banks_no_credit() -> None:
    cycle = cycle_of(ALL)
    serve(cycle, 1_000, lambda name: tier_of_queue(name) is not ServiceTier.PRIORITY)

    counts = tiers(serve(cycle, 54))

    assert counts[ServiceTier.PRIORITY] == pytest.approx(32, abs=2)


def test_idle_tiers_bank_no_order() -> None:
    """Of those that return together the heaviest is first, though another was idle for longer."""
    cycle = cycle_of(ALL)
    for busy in (ServiceTier.PRIORITY, ServiceTier.DEFAULT):
        serve(cycle, 100, lambda name, busy=busy: tier_of_queue(name) is busy)  # type: ignore[misc]

    served = [tier_of_queue(name) for name in serve(cycle, 3)]

    assert served == [ServiceTier.PRIORITY, ServiceTier.FLEX, ServiceTier.BATCH]


def test_tier_served_alone_is_not_punished_when_others_return() -> None:
    cycle = cycle_of(ALL)
    serve(cycle, 1_000, lambda name: tier_of_queue(name) is ServiceTier.BATCH)

    counts = tiers(serve(cycle, 54))

    assert counts[ServiceTier.BATCH] == pytest.approx(2, abs=1)


def test_lanes_of_a_tier_take_turns() -> None:
    lanes = [lane(ServiceTier.DEFAULT, number) for number in range(5)]
    cycle = cycle_of(lanes)

    served = serve(cycle, 15)

    assert [sorted(served[i : i + 5]) for i in (0, 5, 10)] == [sorted(lanes)] * 3


def test_lane_that_was_idle_gets_one_turn_not_its_missed_ones() -> None:
    busy, returning = lane(ServiceTier.DEFAULT, 0), lane(ServiceTier.DEFAULT, 1)
    cycle = cycle_of([busy, returning])
    serve(cycle, 20, lambda name: name == busy)

    served = serve(cycle, 6)

    assert served == [returning, busy] * 3


def test_free_worker_takes_what_there_is() -> None:
    cycle = cycle_of(ALL)
    only = lane(ServiceTier.BATCH, 7)

    served = serve(cycle, 50, lambda name: name == only)

    assert served == [only] * 50


def test_kombu_builds_it_without_arguments_from_the_settings() -> None:
    cycle = cycle_by_name(broker_transport_options["queue_order_strategy"])()

    assert isinstance(cycle, VirtualTokenCycle)
    assert cycle.consume(10) == []


def test_update_replaces_the_queues_in_place() -> None:
    cycle = VirtualTokenCycle()
    items = cycle.items

    cycle.update(iter(ALL[:2]))
    cycle.update(ALL[1:3])

    assert cycle.items is items
    assert sorted(cycle.consume(2)) == sorted(ALL[1:3])


def test_update_keeps_what_was_served() -> None:
    first, second = lane(ServiceTier.DEFAULT, 0), lane(ServiceTier.DEFAULT, 1)
    cycle = cycle_of([first, second])
    cycle.rotate(first)

    cycle.update([first, second])

    assert cycle.consume(2) == [second, first]


def test_consume_changes_nothing() -> None:
    cycle = cycle_of(ALL)

    orders = [cycle.consume(len(ALL)) for _ in range(3)]

    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0]) == sorted(ALL)


def test_queues_without_a_tier_take_turns() -> None:
    cycle = cycle_of([BILLING, "webhooks"])

    assert serve(cycle, 4) == [BILLING, "webhooks"] * 2


@pytest.mark.parametrize(
    ("served", "never_served"), [(BILLING, "webhooks"), (ALL[0], ALL[1]), (ALL[1], ALL[0])]
)
def test_a_queue_that_never_delivered_is_first(served: str, never_served: str) -> None:
    cycle = cycle_of([served, never_served])
    cycle.rotate(served)

    assert cycle.consume(2) == [never_served, served]


def test_as_many_queues_are_given_as_are_asked_for() -> None:
    assert cycle_of(ALL).consume(1) == ALL[:1]


def test_rotate_of_a_queue_that_is_gone_is_harmless() -> None:
    cycle = cycle_of(ALL[:2])

    assert cycle.rotate("inference.default.default.99") == "inference.default.default.99"
