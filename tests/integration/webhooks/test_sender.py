"""Deliveries arrive, whatever receivers, senders and the network do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import openai
import pytest

from cli.stack.database import DatabaseUrls
from store import webhook_sending
from store.pools import DictConnection, connect
from store.retention import expiries
from store.settings import RetentionSettings
from tasks.webhook_urls import UrlPolicy
from tests.integration.webhooks.conftest import SECRET, Hooks, running_sender
from tests.support.poison import refuse
from tests.support.roles import Connections
from tests.support.waiting import wait_until
from tests.support.webhook_receiver import Receiver, receiver
from tests.unit.maintenance.test_webhook_messages import text_of
from workers.maintenance.webhooks.sender import MAX_IN_FLIGHT, WebhookSender


def _is_delivered(hooks: Hooks, delivery: UUID) -> bool:
    return hooks.of(delivery)["delivered_at"] is not None


def _wait_for_attempt(hooks: Hooks, delivery: UUID, attempts: int) -> None:
    """Until so many attempts were made and the last one's outcome is noted."""
    wait_until(
        lambda: (
            hooks.of(delivery)["attempts"] == attempts
            and hooks.of(delivery)["last_error"] is not None
        ),
        what=f"attempt {attempts}",
    )


def _taken(connection: DictConnection, *, busy: Sequence[UUID], limit: int) -> list[dict[str, Any]]:
    due = webhook_sending.due_endpoints(connection).ids
    return webhook_sending.take(connection, due=due, busy=busy, limit=limit)


def test_a_delivery_arrives_signed(hooks: Hooks, server: Receiver, sender: WebhookSender) -> None:
    delivery = hooks.delivery(hooks.endpoint(server.url))

    wait_until(lambda: _is_delivered(hooks, delivery))

    [received] = server.received
    with openai.OpenAI(api_key="none", webhook_secret=text_of(SECRET)) as client:
        event = client.webhooks.unwrap(received.body, received.headers)
    row = hooks.of(delivery)
    assert event.id == f"evt_{row['event_id'].hex}"
    assert (row["attempts"], row["last_status_code"], row["last_error"]) == (1, 200, None)
    assert row["next_attempt_at"] is None


def test_a_signature_tells_postgres_time_whatever_the_senders_clock_shows(
    hooks: Hooks, server: Receiver, sender: WebhookSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + 3_600)

    delivery = hooks.delivery(hooks.endpoint(server.url))

    wait_until(lambda: _is_delivered(hooks, delivery))
    assert abs(int(server.received[0].headers["webhook-timestamp"]) - right()) < 300


def test_a_failure_is_tried_again_under_the_same_id(
    hooks: Hooks, server: Receiver, sender: WebhookSender
) -> None:
    server.answer(500)
    server.answer(302, location="http://127.0.0.1:1/")
    endpoint = hooks.endpoint(server.url)
    delivery = hooks.delivery(endpoint)

    _wait_for_attempt(hooks, delivery, 1)
    failed = hooks.of(delivery)
    hooks.make_due()
    wait_until(lambda: "redirects" in (hooks.of(delivery)["last_error"] or ""))
    assert hooks.endpoint_row(endpoint)["failing_since"] is not None
    hooks.make_due()
    wait_until(lambda: _is_delivered(hooks, delivery))

    assert failed["last_status_code"] == 500
    assert failed["next_attempt_at"] > failed["created_at"]
    assert len(server.ids()) == 3
    assert len(set(server.ids())) == 1
    assert hooks.endpoint_row(endpoint)["failing_since"] is None


def test_a_slow_endpoint_keeps_no_other_waiting(
    hooks: Hooks, server: Receiver, sender: WebhookSender
) -> None:
    with receiver() as slow:
        slow.may_answer.clear()
        endpoint = hooks.endpoint(slow.url)
        stuck = [hooks.delivery(endpoint) for _ in range(20)]
        wait_until(lambda: slow.received)

        quick = [hooks.delivery(hooks.endpoint(server.url)) for _ in range(3)]

        wait_until(lambda: all(_is_delivered(hooks, delivery) for delivery in quick))
        assert len(slow.received) <= webhook_sending.AT_ONCE
        slow.may_answer.set()
        wait_until(lambda: all(_is_delivered(hooks, delivery) for delivery in stuck))


def test_slow_names_and_many_slow_endpoints_of_a_tenant_keep_no_other_waiting(
    hooks: Hooks, server: Receiver, database: DatabaseUrls
) -> None:
    """More of them than all threads for statements, and than all deliveries in flight."""
    may_answer = threading.Event()

    def resolve(host: str, port: int) -> list[str]:
        if host == "slow.example":
            may_answer.wait(30)
        return ["127.0.0.1"]

    for _ in range(MAX_IN_FLIGHT // webhook_sending.AT_ONCE + 1):
        endpoint = hooks.endpoint("http://slow.example/")
        for _ in range(webhook_sending.AT_ONCE):
            hooks.delivery(endpoint)
    neighbour = Hooks(hooks.rows, hooks.rows.tenant())
    policy = UrlPolicy(allow_private=True)
    with running_sender(database, policy, resolve=resolve):
        wait_until(lambda: any(row["attempts"] for row in hooks.deliveries()))

        delivery = neighbour.delivery(neighbour.endpoint(server.url))

        try:
            wait_until(lambda: _is_delivered(neighbour, delivery), timeout_s=8)
            taken = sum(row["attempts"] for row in hooks.deliveries())
            assert taken == webhook_sending.AT_ONCE * webhook_sending.ENDPOINTS_AT_ONCE + 1
        finally:
            may_answer.set()


def test_each_tenant_has_a_turn_before_one_has_its_second(hooks: Hooks, roles: Connections) -> None:
    others = [Hooks(hooks.rows, hooks.rows.tenant()) for _ in range(3)]
    for owner, num_endpoints in ((hooks, 10), *((other, 1) for other in others)):
        for _ in range(num_endpoints):
            owner.delivery(owner.endpoint())

    first = _taken(roles.worker, busy=[], limit=4)
    busy = [row["endpoint_id"] for row in first]
    second = _taken(roles.worker, busy=busy, limit=100)

    assert {row["tenant_id"] for row in first} == {hooks.tenant_id, *(o.tenant_id for o in others)}
    assert {row["tenant_id"] for row in second} == {hooks.tenant_id}
    assert len(second) == webhook_sending.ENDPOINTS_AT_ONCE - 1
    assert not {row["endpoint_id"] for row in second} & set(busy)


def test_who_is_busy_gets_no_more_whatever_waits_for_it(hooks: Hooks, roles: Connections) -> None:
    busy, free = hooks.endpoint(), hooks.endpoint()
    for endpoint in (busy, busy, free):
        hooks.delivery(endpoint)

    taken = _taken(roles.worker, busy=[busy], limit=100)

    assert [row["endpoint_id"] for row in taken] == [free]


def test_rounds_pass_over_no_endpoint_and_begin_again(hooks: Hooks, roles: Connections) -> None:
    """Whether they have something to send now, or later only."""
    endpoints = sorted(hooks.endpoint() for _ in range(5))
    for endpoint in endpoints:
        hooks.delivery(endpoint)
    hooks.endpoint()  # with nothing to send
    hooks.rows.connection.execute(
        "UPDATE webhook_deliveries SET next_attempt_at = now() + interval '1 hour'"
        " WHERE endpoint_id = ANY(%s)",
        (endpoints[:3],),
    )

    rounds, after = [], webhook_sending.FIRST
    for _ in range(4):
        found = webhook_sending.due_endpoints(roles.worker, after=after, max_seen=2)
        rounds.append(found.ids)
        after = found.last

    assert rounds == [[], endpoints[3:4], endpoints[4:], []]


def test_one_delivery_that_breaks_the_sender_holds_up_no_other(
    hooks: Hooks, server: Receiver, database: DatabaseUrls
) -> None:
    """Its slot is free again, and it is tried like any that failed."""

    def resolve(host: str, port: int) -> list[str]:
        if host == "poison.example":
            raise LookupError("a fault of ours")
        return ["127.0.0.1"]

    poison = hooks.endpoint("http://poison.example/")
    first, bad, last = (
        hooks.delivery(hooks.endpoint(server.url)),
        hooks.delivery(poison),
        hooks.delivery(hooks.endpoint(server.url)),
    )
    with running_sender(database, UrlPolicy(allow_private=True), resolve=resolve):
        wait_until(lambda: _is_delivered(hooks, first) and _is_delivered(hooks, last))
        _wait_for_attempt(hooks, bad, 1)
        hooks.rows.connection.execute(
            "UPDATE webhook_endpoints SET url = %s WHERE id = %s", (server.url, poison)
        )
        hooks.make_due()

        wait_until(lambda: _is_delivered(hooks, bad))


def test_a_delivery_that_can_not_be_taken_holds_up_no_other(
    hooks: Hooks, server: Receiver, database: DatabaseUrls
) -> None:
    endpoint = hooks.endpoint(server.url)
    stuck, beside, other = (
        hooks.delivery(endpoint),
        hooks.delivery(endpoint),
        hooks.delivery(hooks.endpoint(server.url)),
    )
    refuse(hooks.rows.connection, "webhook_deliveries", "id", stuck)

    with running_sender(database, UrlPolicy(allow_private=True)):
        wait_until(lambda: _is_delivered(hooks, beside) and _is_delivered(hooks, other))

    assert hooks.of(stuck)["attempts"] == 0


def test_a_delivery_that_could_not_be_taken_is_told_of_and_left_alone(
    hooks: Hooks, roles: Connections
) -> None:
    endpoint = hooks.endpoint()
    stuck, other = hooks.delivery(endpoint), hooks.delivery(endpoint)
    refuse(roles.owner, "webhook_deliveries", "id", stuck)
    told: list[UUID] = []

    taken = webhook_sending.take(
        roles.worker, due=[endpoint], busy=[], limit=9, set_aside=lambda id_, _: told.append(id_)
    )
    roles.owner.execute("DROP TRIGGER refuse ON webhook_deliveries")
    left_alone = webhook_sending.take(roles.worker, due=[endpoint], busy=[], limit=9, aside=told)

    assert ([row["id"] for row in taken], told, left_alone) == ([other], [stuck], [])


def test_an_outcome_that_is_never_noted_is_waited_for_ever_longer_and_not_past_its_day(
    hooks: Hooks, roles: Connections
) -> None:
    """A sender that dies each time, or an endpoint whose row takes no change."""
    delivery = hooks.delivery(hooks.endpoint())
    leases = []
    for _ in range(10):
        hooks.make_due()
        assert len(_taken(roles.worker, busy=[], limit=1)) == 1
        row = hooks.rows.one(
            "SELECT extract(epoch FROM next_attempt_at - now())::float8 AS s FROM"
            " webhook_deliveries"
        )
        leases.append(row["s"])

    assert leases == pytest.approx([60 * 2**n for n in range(8)] + [14_400.0] * 2, abs=30)
    hooks.rows.connection.execute(
        "UPDATE webhook_deliveries SET try_until = now() - interval '61 minutes' WHERE id = %s",
        (delivery,),
    )
    hooks.make_due()
    assert _taken(roles.worker, busy=[], limit=1) == []


def test_a_name_with_too_long_a_label_costs_no_slot(
    hooks: Hooks, server: Receiver, sender: WebhookSender
) -> None:
    """More such deliveries than one endpoint may have in flight, then a good one."""
    endpoint = hooks.endpoint(f"http://{'a' * 70}.example/")
    bad = [hooks.delivery(endpoint) for _ in range(webhook_sending.AT_ONCE + 1)]
    for delivery in bad:
        _wait_for_attempt(hooks, delivery, 1)
    hooks.rows.connection.execute("UPDATE webhook_endpoints SET url = %s", (server.url,))
    hooks.make_due()

    wait_until(lambda: all(_is_delivered(hooks, delivery) for delivery in bad))


def test_what_a_dead_sender_took_is_sent_by_the_next(
    hooks: Hooks, server: Receiver, roles: Connections, database: DatabaseUrls
) -> None:
    delivery = hooks.delivery(hooks.endpoint(server.url))
    [taken] = _taken(roles.worker, busy=[], limit=10)  # and dies
    assert _taken(roles.worker, busy=[], limit=10) == []

    hooks.make_due()
    with running_sender(database, UrlPolicy(allow_private=True)):
        wait_until(lambda: _is_delivered(hooks, delivery))
    webhook_sending.note_failed(  # the dead one's word comes late
        roles.worker, taken, status_code=500, error="late", delay_s=1, is_gone=False
    )

    row = hooks.of(delivery)
    assert (row["attempts"], row["last_error"], row["next_attempt_at"]) == (2, None, None)


def test_an_endpoint_that_is_gone_is_switched_off(
    hooks: Hooks, server: Receiver, sender: WebhookSender
) -> None:
    server.answer(410)
    endpoint = hooks.endpoint(server.url)
    hooks.delivery(endpoint)

    wait_until(lambda: not hooks.endpoint_row(endpoint)["is_enabled"])

    assert "410" in hooks.endpoint_row(endpoint)["disabled_reason"]


def test_an_endpoint_that_failed_for_a_day_is_switched_off(
    hooks: Hooks, server: Receiver, sender: WebhookSender
) -> None:
    server.answer(500)
    endpoint = hooks.endpoint(server.url)
    hooks.rows.connection.execute(
        "UPDATE webhook_endpoints SET failing_since = now() - interval '25 hours'"
    )
    hooks.delivery(endpoint)

    wait_until(lambda: not hooks.endpoint_row(endpoint)["is_enabled"])

    assert "24 hours" in hooks.endpoint_row(endpoint)["disabled_reason"]


def test_a_delivery_is_given_up_after_its_day(
    hooks: Hooks, server: Receiver, sender: WebhookSender
) -> None:
    server.answer(503, retry_after="600")
    endpoint = hooks.endpoint(server.url)
    delivery = hooks.delivery(endpoint)
    hooks.rows.connection.execute(
        "UPDATE webhook_deliveries SET try_until = now() + interval '1 minute'"
    )

    wait_until(lambda: hooks.of(delivery)["given_up_at"] is not None)

    assert hooks.of(delivery)["next_attempt_at"] is None
    assert hooks.endpoint_row(endpoint)["is_enabled"]


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("https://127.0.0.1/", "public"),
        ("https://localhost/", "public"),
        ("https://0x7f.1/", "public"),
        ("https://2130706433/", "public"),
        ("https://no-such-host.invalid/", "resolved"),
        ("http://example.com/", "https"),
    ],
)
def test_nothing_is_sent_where_it_must_not_go(
    hooks: Hooks, database: DatabaseUrls, url: str, word: str
) -> None:
    delivery = hooks.delivery(hooks.endpoint(url))

    with running_sender(database, UrlPolicy()):
        wait_until(lambda: hooks.of(delivery)["last_error"] is not None)

    assert word in hooks.of(delivery)["last_error"]
    assert hooks.of(delivery)["last_status_code"] is None


def test_an_endpoint_that_speaks_no_tls_or_no_http_is_no_trouble(
    hooks: Hooks, server: Receiver, sender: WebhookSender
) -> None:
    delivery = hooks.delivery(hooks.endpoint(server.url.replace("http:", "https:")))

    wait_until(lambda: hooks.of(delivery)["last_error"] is not None)

    assert "TLS" in hooks.of(delivery)["last_error"]


def test_old_deliveries_are_forgotten_and_stuck_ones_given_up(
    hooks: Hooks, roles: Connections
) -> None:
    endpoint = hooks.endpoint(is_enabled=False)
    old, young, stuck = (hooks.delivery(endpoint) for _ in range(3))
    hooks.rows.connection.execute(
        "UPDATE webhook_deliveries SET next_attempt_at = NULL, delivered_at = now(),"
        " created_at = now() - interval '31 days' WHERE id = %s",
        (old,),
    )
    hooks.rows.connection.execute(
        "UPDATE webhook_deliveries SET try_until = now() - interval '2 hours' WHERE id = %s",
        (stuck,),
    )

    kinds = expiries(RetentionSettings())
    for kind in ("webhook_deliveries", "late_webhook_deliveries"):
        assert kinds[kind](roles.worker, batch=10).num_removed == 1

    left = {row["id"]: row for row in hooks.deliveries()}
    assert left.keys() == {young, stuck}
    assert left[stuck]["given_up_at"] is not None
    assert left[young]["next_attempt_at"] is not None


def test_the_event_says_what_ended_and_nothing_more(
    hooks: Hooks, server: Receiver, sender: WebhookSender, database: DatabaseUrls
) -> None:
    delivery = hooks.delivery(hooks.endpoint(server.url), type="batch.expired", object_id="batch_1")

    wait_until(lambda: _is_delivered(hooks, delivery))

    event = json.loads(server.received[0].body)
    assert event["data"] == {"id": "batch_1"}
    with connect(database.worker, application_name="test") as connection:
        assert _taken(connection, busy=[], limit=10) == []
