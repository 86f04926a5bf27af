"""What a sender takes, and what it notes: which rows, in which order, up to which moment."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from psycopg import sql

from cli.stack.database import DatabaseUrls
from store import webhook_sending
from store.pools import DictConnection, connect
from store.webhook_sending import AT_ONCE, DEAD_AFTER_H, LATE_S
from tests.integration.webhooks.conftest import SECRET, Hooks
from tests.support.roles import Connections


def _set(hooks: Hooks, table: str, id_: UUID, column: str, value: str) -> None:
    """`value` is SQL, so that it may speak of now()."""
    hooks.rows.connection.execute(
        sql.SQL("UPDATE {} SET {} = {} WHERE id = %s").format(
            sql.Identifier(table),
            sql.Identifier(column),
            sql.SQL(value),
        ),
        (id_,),
    )


def _due(hooks: Hooks, endpoint: UUID, when: str) -> UUID:
    delivery = hooks.delivery(endpoint)
    _set(hooks, "webhook_deliveries", delivery, "next_attempt_at", when)
    return delivery


def _take(
    connection: DictConnection, due: Sequence[UUID], *, limit: int = 99
) -> dict[UUID, dict[str, Any]]:
    taken = webhook_sending.take(connection, due=due, busy=[], limit=limit)
    return {row["id"]: row for row in taken}


def test_an_endpoint_that_has_had_everything_takes_no_place_in_a_round(
    hooks: Hooks, roles: Connections
) -> None:
    first, idle, last = sorted(hooks.endpoint() for _ in range(3))
    hooks.delivery(idle, next_attempt_at=None, delivered_at="now")
    _due(hooks, first, "now() + interval '1 hour'")
    for endpoint in (first, last):
        _due(hooks, endpoint, "now() - interval '1 minute'")

    found = webhook_sending.due_endpoints(roles.worker, max_seen=2)
    behind = webhook_sending.due_endpoints(roles.worker, after=found.last, max_seen=2)

    assert (found.ids, found.last) == ([first, last], last)
    assert (behind.ids, behind.last) == ([], webhook_sending.FIRST)


def test_only_what_is_due_to_endpoints_that_are_due_and_switched_on_is_taken(
    hooks: Hooks, roles: Connections
) -> None:
    due, not_asked, off = hooks.endpoint(), hooks.endpoint(), hooks.endpoint(is_enabled=False)
    now = _due(hooks, due, "now()")
    _due(hooks, due, "now() + interval '1 minute'")
    hooks.delivery(due, next_attempt_at=None, delivered_at="now")
    for endpoint in (not_asked, off):
        hooks.delivery(endpoint)

    assert set(_take(roles.worker, [due, off])) == {now}


@pytest.mark.parametrize(("late_s", "is_taken"), [(LATE_S - 60, True), (LATE_S + 1, False)])
def test_a_delivery_past_its_day_is_sent_for_another_hour(
    hooks: Hooks, roles: Connections, late_s: float, is_taken: bool
) -> None:
    endpoint = hooks.endpoint()
    delivery = hooks.delivery(endpoint)
    until = f"now() - interval '{late_s} seconds'"
    _set(hooks, "webhook_deliveries", delivery, "try_until", until)

    assert set(_take(roles.worker, [endpoint])) == ({delivery} if is_taken else set())


def test_of_an_endpoints_deliveries_those_that_wait_longest_are_taken(
    hooks: Hooks, roles: Connections
) -> None:
    endpoint = hooks.endpoint()
    ages = (3, 6, 1, 5, 2, 4)
    made = {age: _due(hooks, endpoint, f"now() - interval '{age} minutes'") for age in ages}

    assert set(_take(roles.worker, [endpoint])) == {made[age] for age in sorted(ages)[-AT_ONCE:]}


def test_what_another_sender_is_taking_is_not_waited_for(
    hooks: Hooks, roles: Connections, database: DatabaseUrls
) -> None:
    endpoint = hooks.endpoint()
    for minutes in range(AT_ONCE + 1):
        _due(hooks, endpoint, f"now() - interval '{minutes} minutes'")
    with (
        roles.worker.transaction(),
        connect(database.worker, application_name="test") as another,
    ):
        another.execute("SET statement_timeout = '5s'")
        first = _take(roles.worker, [endpoint])
        second = _take(another, [endpoint])

    assert (len(first), len(second)) == (AT_ONCE, 1)
    assert first.keys().isdisjoint(second)


def test_a_delivery_comes_with_its_own_endpoints_url_and_secrets(
    hooks: Hooks, roles: Connections
) -> None:
    made = {}
    for name, until in (
        ("old", "now() + interval '1 minute'"),
        ("past", "now()"),
        ("never", "NULL"),
    ):
        endpoint = hooks.endpoint(f"https://{name}.example/")
        _set(hooks, "webhook_endpoints", endpoint, "previous_secret", "'before'::bytea")
        _set(hooks, "webhook_endpoints", endpoint, "previous_until", until)
        made[hooks.delivery(endpoint)] = (endpoint, name)

    taken = _take(roles.worker, [endpoint for endpoint, _ in made.values()])

    assert taken.keys() == made.keys()
    for delivery, (endpoint, name) in made.items():
        row = taken[delivery]
        assert (row["endpoint_id"], row["url"]) == (endpoint, f"https://{name}.example/")
        assert (row["attempts"], bytes(row["secret"])) == (1, SECRET)
        assert row["previous_secret"] == (b"before" if name == "old" else None)
        assert row["tenant_id"] == hooks.tenant_id


def _taken_of_two(hooks: Hooks, roles: Connections) -> tuple[dict[str, Any], dict[str, Any]]:
    """Taken deliveries of two endpoints that fail."""
    endpoints = [hooks.endpoint(failing_since="2026-01-01") for _ in range(2)]
    for endpoint in endpoints:
        _set(hooks, "webhook_endpoints", endpoint, "failing_since", "now() - interval '1 hour'")
    ids = [hooks.delivery(endpoint) for endpoint in endpoints]
    taken = _take(roles.worker, endpoints)
    return taken[ids[0]], taken[ids[1]]


def _everything(hooks: Hooks, *, but: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """All rows, or all but those of a delivery and its endpoint."""
    gone = (but["id"], but["endpoint_id"]) if but else ()
    endpoints = hooks.rows.connection.execute("SELECT * FROM webhook_endpoints ORDER BY id")
    rows = [*hooks.deliveries(), *endpoints.fetchall()]
    return [row for row in rows if row["id"] not in gone]


def _fail(
    connection: DictConnection,
    delivery: dict[str, Any],
    *,
    delay_s: float = 60,
    is_gone: bool = False,
) -> bool:
    return webhook_sending.note_failed(
        connection, delivery, status_code=500, error="no", delay_s=delay_s, is_gone=is_gone
    )


def test_an_arrival_is_noted_of_its_delivery_and_endpoint_alone(
    hooks: Hooks, roles: Connections
) -> None:
    one, _ = _taken_of_two(hooks, roles)
    before, others = hooks.of(one["id"]), _everything(hooks, but=one)

    webhook_sending.note_delivered(roles.worker, one, 204)

    row = hooks.of(one["id"])
    assert row["delivered_at"] is not None
    assert row == before | {
        "delivered_at": row["delivered_at"],
        "next_attempt_at": None,
        "last_status_code": 204,
    }
    assert hooks.endpoint_row(one["endpoint_id"])["failing_since"] is None
    assert _everything(hooks, but=one) == others


def test_an_arrival_writes_no_row_of_an_endpoint_that_does_not_fail(
    hooks: Hooks, roles: Connections
) -> None:
    """All its deliveries would wait for each other there."""
    endpoint = hooks.endpoint()
    hooks.delivery(endpoint)
    [taken] = _take(roles.worker, [endpoint]).values()
    version = "SELECT xmin::text FROM webhook_endpoints"
    before = hooks.rows.one(version)

    webhook_sending.note_delivered(roles.worker, taken, 200)

    assert hooks.rows.one(version) == before


def test_a_failure_is_noted_of_its_delivery_and_endpoint_alone(
    hooks: Hooks, roles: Connections
) -> None:
    one, _ = _taken_of_two(hooks, roles)
    others = _everything(hooks, but=one)
    before = hooks.endpoint_row(one["endpoint_id"])

    is_off = _fail(roles.worker, one)

    row = hooks.of(one["id"])
    assert not is_off
    assert (row["last_status_code"], row["last_error"]) == (500, "no")
    assert hooks.endpoint_row(one["endpoint_id"]) == before
    assert _everything(hooks, but=one) == others


def test_what_a_sender_says_of_an_attempt_before_counts_for_nothing(
    hooks: Hooks, roles: Connections
) -> None:
    stale, _ = _taken_of_two(hooks, roles)
    hooks.make_due()
    _take(roles.worker, [stale["endpoint_id"]])
    before = _everything(hooks)

    webhook_sending.note_delivered(roles.worker, stale, 200)
    is_off = _fail(roles.worker, stale, is_gone=True)

    assert not is_off
    assert _everything(hooks) == before


@pytest.mark.parametrize(("left_s", "is_tried_again"), [(60, True), (59, False)])
def test_a_delivery_is_tried_up_to_the_end_of_its_day(
    hooks: Hooks, roles: Connections, left_s: int, is_tried_again: bool
) -> None:
    one, _ = _taken_of_two(hooks, roles)
    with roles.owner.transaction():  # now() stands still
        roles.owner.execute(
            "UPDATE webhook_deliveries SET try_until = now() + make_interval(secs => %s)", (left_s,)
        )
        _fail(roles.owner, one, delay_s=60)

    row = hooks.of(one["id"])
    now = row["try_until"] - timedelta(seconds=left_s)
    assert row["next_attempt_at"] == (row["try_until"] if is_tried_again else None)
    assert row["given_up_at"] == (None if is_tried_again else now)


@pytest.mark.parametrize(
    ("failing_for", "is_gone", "reason"),
    [
        (None, False, None),
        (f"{DEAD_AFTER_H} hours", False, None),
        (f"{DEAD_AFTER_H} hours 1 second", False, f"failed for {DEAD_AFTER_H} hours"),
        (None, True, "410 Gone"),
    ],
)
def test_an_endpoint_is_switched_off_after_a_day_of_failures_or_when_it_is_gone(
    hooks: Hooks, roles: Connections, failing_for: str | None, is_gone: bool, reason: str | None
) -> None:
    one, _ = _taken_of_two(hooks, roles)
    others = _everything(hooks, but=one)
    with roles.owner.transaction():  # now() stands still
        roles.owner.execute(
            "UPDATE webhook_endpoints SET failing_since = now() - %s::interval WHERE id = %s",
            (failing_for, one["endpoint_id"]),
        )
        is_off = _fail(roles.owner, one, is_gone=is_gone)

    row = hooks.endpoint_row(one["endpoint_id"])
    assert (is_off, row["is_enabled"]) == (reason is not None, reason is None)
    assert (row["disabled_reason"] is None) == (reason is None)
    assert (reason or "") in (row["disabled_reason"] or "")
    assert row["failing_since"] is not None
    assert _everything(hooks, but=one) == others


def test_an_endpoint_that_is_off_stays_off_for_the_reason_it_had(
    hooks: Hooks, roles: Connections
) -> None:
    one, _ = _taken_of_two(hooks, roles)
    _set(hooks, "webhook_endpoints", one["endpoint_id"], "is_enabled", "false")
    _set(hooks, "webhook_endpoints", one["endpoint_id"], "disabled_reason", "'by its owner'")

    assert _fail(roles.worker, one)

    row = hooks.endpoint_row(one["endpoint_id"])
    assert (row["is_enabled"], row["disabled_reason"]) == (False, "by its owner")
