"""Queue names, lanes, and reading a tier back from a name."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

import pytest

from tasks.ids import uuid7
from tasks.queues import (
    BILLING,
    MAINTENANCE,
    NUM_LANES,
    WEBHOOKS,
    ServiceTier,
    lane_for,
    named_queue,
    queue_for,
    queues_of_pool,
    tier_of_queue,
)


def test_queue_of_a_lane_is_named_by_pool_tier_and_lane() -> None:
    queue = queue_for("large", ServiceTier.FLEX, 3)

    assert queue.name == "inference.large.flex.3"


def test_each_queue_has_an_exchange_of_its_own() -> None:
    queues = queues_of_pool("default")

    assert {(q.exchange.name, q.routing_key) for q in queues} == {(q.name, q.name) for q in queues}
    assert {q.exchange.type for q in queues} == {"direct"}


def test_pool_has_all_lanes_of_all_tiers_once() -> None:
    names = [queue.name for queue in queues_of_pool("default")]

    assert len(set(names)) == len(names) == NUM_LANES * len(ServiceTier)


def test_tier_is_read_back_from_every_queue_of_a_pool() -> None:
    tiers = Counter(tier_of_queue(queue.name) for queue in queues_of_pool("default"))

    assert tiers == dict.fromkeys(ServiceTier, NUM_LANES)


@pytest.mark.parametrize(
    "name",
    [
        BILLING,
        WEBHOOKS,
        MAINTENANCE,
        "",
        "inference",
        "inference.default.default",
        "inference.default.default.0.1",
        "inference.default.unheard-of.0",
        "other.default.default.0",
    ],
)
def test_other_queues_have_no_tier(name: str) -> None:
    assert tier_of_queue(name) is None


def test_lane_of_a_tenant_is_the_same_in_every_process() -> None:
    assert lane_for(UUID("01a207be-be81-7000-98ee-a49960888d98")) == 9


def test_tenants_are_spread_over_all_lanes() -> None:
    lanes = Counter(lane_for(uuid7()) for _ in range(3_200))

    assert set(lanes) == set(range(NUM_LANES))
    assert max(lanes.values()) < 2 * 3_200 / NUM_LANES


def test_queue_objects_are_made_once() -> None:
    assert named_queue(BILLING) is named_queue(BILLING)
