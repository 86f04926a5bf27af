"""Endpoints and deliveries as the API asks for them, row by row."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest

from cli.stack.database import DatabaseUrls
from store import webhooks
from store.pools import AsyncPool, async_pool
from tests.integration.webhooks.conftest import Hooks

T = TypeVar("T")
Ask = Callable[[Callable[[AsyncPool], Awaitable[Any]]], Any]

_STATES: dict[str, dict[str, Any]] = {
    "pending": {},
    "delivered": {"next_attempt_at": None, "delivered_at": "now"},
    "failed": {"next_attempt_at": None, "given_up_at": "now"},
}


@pytest.fixture
def as_api(database: DatabaseUrls) -> Ask:
    async def run(ask: Callable[[AsyncPool], Awaitable[T]]) -> T:
        async with async_pool(database.api, application_name="test", max_size=1) as pool:
            return await ask(pool)

    return lambda ask: asyncio.run(run(ask))


def _listed(
    as_api: Ask,
    hooks: Hooks,
    endpoint: UUID,
    *,
    status: str | None = None,
    after: UUID | None = None,
    limit: int = 9,
) -> list[UUID]:
    rows = as_api(
        lambda pool: webhooks.list_deliveries(
            pool, hooks.tenant_id, endpoint, status=status, after=after, limit=limit
        )
    )
    return [row["id"] for row in rows]


def test_deliveries_of_a_state_are_those_and_no_others(hooks: Hooks, as_api: Ask) -> None:
    endpoint = hooks.endpoint()
    made = {state: hooks.delivery(endpoint, **columns) for state, columns in _STATES.items()}
    hooks.delivery(hooks.endpoint())

    for state, delivery in made.items():
        assert _listed(as_api, hooks, endpoint, status=state) == [delivery]
    assert set(_listed(as_api, hooks, endpoint)) == set(made.values())


def test_deliveries_are_paged_newest_first_and_those_of_one_moment_by_their_ids(
    hooks: Hooks, as_api: Ask
) -> None:
    endpoint = hooks.endpoint()
    new, old = (
        sorted((hooks.delivery(endpoint, created_at=day) for _ in range(3)), reverse=True)
        for day in ("2026-02-02", "2026-01-01")
    )
    ordered = [*new, *old]

    for place in range(6):
        after = ordered[place - 1] if place else None
        page = _listed(as_api, hooks, endpoint, after=after, limit=2)
        assert page == ordered[place : place + 2]
    foreign = hooks.delivery(hooks.endpoint(), created_at="2026-03-03")
    assert _listed(as_api, hooks, endpoint, after=foreign) == []


def test_endpoints_are_paged_newest_first(hooks: Hooks, as_api: Ask) -> None:
    made = [hooks.endpoint() for _ in range(3)][::-1]

    def page(after: UUID | None) -> list[UUID]:
        rows = as_api(
            lambda pool: webhooks.list_endpoints(pool, hooks.tenant_id, after=after, limit=2)
        )
        return [row["id"] for row in rows]

    assert page(None) == made[:2]
    assert [page(after) for after in made] == [made[1:], made[2:], []]


def _update(as_api: Ask, hooks: Hooks, endpoint: UUID, **changes: Any) -> dict[str, Any] | None:
    row: dict[str, Any] | None = as_api(
        lambda pool: webhooks.update_endpoint(pool, hooks.tenant_id, endpoint, changes)
    )
    return row


def test_an_update_of_nothing_shows_the_endpoint_as_it_is(hooks: Hooks, as_api: Ask) -> None:
    endpoint = hooks.endpoint()
    before = hooks.endpoint_row(endpoint)

    shown = _update(as_api, hooks, endpoint)

    assert shown is not None
    assert shown == {name: before[name] for name in shown}
    assert hooks.endpoint_row(endpoint) == before
    assert _update(as_api, hooks, uuid4()) is None
    assert _update(as_api, hooks, uuid4(), name="x") is None


def test_only_switching_an_endpoint_on_forgets_why_it_was_off(hooks: Hooks, as_api: Ask) -> None:
    endpoint = hooks.endpoint(
        is_enabled=False,
        disabled_reason="gone",
        failing_since="2026-01-01",
        updated_at="2026-01-01",
    )
    before = hooks.endpoint_row(endpoint)

    _update(as_api, hooks, endpoint, is_enabled=False, name="mine")
    assert hooks.endpoint_row(endpoint) == before
    _update(as_api, hooks, endpoint, name="new", url=before["url"])  # one of two is another
    renamed = hooks.endpoint_row(endpoint)
    assert renamed == before | {"name": "new", "updated_at": renamed["updated_at"]}
    assert renamed["updated_at"] > before["updated_at"]
    _update(as_api, hooks, endpoint, is_enabled=True)

    row = hooks.endpoint_row(endpoint)
    assert (row["is_enabled"], row["disabled_reason"], row["failing_since"]) == (True, None, None)


def test_an_endpoint_too_many_is_not_made_and_leaves_the_others(hooks: Hooks, as_api: Ask) -> None:
    foreign = Hooks(hooks.rows, hooks.rows.tenant()).endpoint()
    made = [hooks.endpoint() for _ in range(webhooks.MAX_ENDPOINTS - 1)]

    def create() -> dict[str, Any] | None:
        new = {
            "id": uuid4(),
            "url": "https://example.com/",
            "event_types": ["batch.failed"],
            "name": "new",
            "secret": b"secret",
            "secret_hint": "hint",
        }
        row: dict[str, Any] | None = as_api(
            lambda pool: webhooks.create_endpoint(pool, hooks.tenant_id, new)
        )
        return row

    last = create()
    assert last is not None
    assert create() is None

    left = hooks.rows.connection.execute("SELECT id FROM webhook_endpoints").fetchall()
    assert {row["id"] for row in left} == {foreign, *made, last["id"]}


@pytest.mark.parametrize("state", _STATES)
def test_a_delivery_that_is_sent_again_has_another_day(
    hooks: Hooks, as_api: Ask, state: str
) -> None:
    endpoint = hooks.endpoint()
    delivery = hooks.delivery(endpoint, **_STATES[state], attempts=7, try_until="2026-01-01")
    before = hooks.of(delivery)

    shown = as_api(lambda pool: webhooks.resend(pool, hooks.tenant_id, endpoint, delivery))

    row = hooks.of(delivery)
    now = row["next_attempt_at"]
    assert shown == row
    assert row == before | {
        "attempts": 0,
        "next_attempt_at": now,
        "delivered_at": None,
        "given_up_at": None,
        "try_until": now + timedelta(hours=24),
    }


def test_a_sample_is_tried_once(hooks: Hooks, as_api: Ask) -> None:
    endpoint = hooks.endpoint()

    def add(to: UUID) -> dict[str, Any] | None:
        row: dict[str, Any] | None = as_api(
            lambda pool: webhooks.add_sample(
                pool, hooks.tenant_id, to, type="batch.failed", object_id="batch_1"
            )
        )
        return row

    sample = add(endpoint)

    assert hooks.deliveries() == [sample]
    assert sample is not None
    assert (sample["type"], sample["object_id"]) == ("batch.failed", "batch_1")
    assert sample["try_until"] == sample["next_attempt_at"] == sample["created_at"]
    assert add(uuid4()) is None


def test_a_rotated_secret_is_good_for_as_long_as_was_asked(hooks: Hooks, as_api: Ask) -> None:
    endpoint, other = hooks.endpoint(), hooks.endpoint()
    before = hooks.endpoint_row(other)

    as_api(
        lambda pool: webhooks.rotate_secret(
            pool, hooks.tenant_id, endpoint, secret=b"new", hint="hint", keep_h=24
        )
    )

    row = hooks.endpoint_row(endpoint)
    assert row["previous_until"] - row["updated_at"] == timedelta(hours=24)
    assert (bytes(row["secret"]), row["secret_hint"]) == (b"new", "hint")
    assert hooks.endpoint_row(other) == before
