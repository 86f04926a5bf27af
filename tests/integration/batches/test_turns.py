"""Whose turn it is, and what a step leaves in the row."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from store import batch_turns
from store.batch_turns import LEASE_S, Rest
from store.pools import DictConnection
from tests.integration.batches.test_batch_driving import _batch
from tests.support.roles import Connections
from tests.support.rows import Rows

WAITS = {"code": "insufficient_quota", "message": "No credit."}


@pytest.fixture
def worker(roles: Connections) -> DictConnection:
    return roles.worker


def _due_in(rows: Rows, batch: UUID, seconds: float) -> None:
    rows.connection.execute(
        "UPDATE batches SET next_step_at = now() + make_interval(secs => %s) WHERE id = %s",
        (seconds, batch),
    )


def _row(rows: Rows, batch: UUID) -> dict[str, Any]:
    return rows.one(
        "SELECT *, extract(epoch FROM next_step_at - now())::float8 AS due_s,"
        " extract(epoch FROM leased_until - now())::float8 AS lease_s,"
        " waits_for IS NULL AS has_no_reason FROM batches WHERE id = %s",
        batch,
    )


def test_of_each_tenant_the_batch_that_waits_longest_and_whoever_waits_longest_first(
    worker: DictConnection, rows: Rows
) -> None:
    one, two, three = rows.tenant(), rows.tenant(), rows.tenant()
    waiting = [(one, -5), (two, -9), (one, -7), (three, -1), (two, -3), (three, 60)]
    ids = []
    for tenant, seconds in waiting:
        ids.append(_batch(rows, tenant))
        _due_in(rows, ids[-1], seconds)

    assert batch_turns.due(worker) == [ids[1], ids[2], ids[3]]


@pytest.mark.parametrize(
    ("status", "is_due"),
    [
        *((status, True) for status in ("validating", "in_progress", "finalizing", "cancelling")),
        *((status, False) for status in ("completed", "failed", "expired", "cancelled")),
    ],
)
def test_what_is_over_has_no_turn(
    worker: DictConnection, rows: Rows, status: str, is_due: bool
) -> None:
    batch = _batch(rows, rows.tenant(), status=status)

    assert batch_turns.due(worker) == ([batch] if is_due else [])
    assert (batch_turns.lease(worker, batch) is not None) is is_due


def test_a_lease_is_of_one_batch_and_says_how_it_stands(worker: DictConnection, rows: Rows) -> None:
    tenant = rows.tenant()
    batch, other, late = (_batch(rows, tenant) for _ in range(3))
    rows.connection.execute(
        "UPDATE batches SET expires_at = now() - interval '10 s' WHERE id = %s", (late,)
    )

    leased, of_late = batch_turns.lease(worker, batch), batch_turns.lease(worker, late)

    assert leased is not None
    assert of_late is not None
    assert (leased["id"], leased["is_unfinished"], leased["is_late"]) == (batch, False, False)
    assert 86_000 < leased["remaining_s"] <= 86_400
    assert (of_late["is_late"], round(of_late["remaining_s"])) == (True, -10)
    assert leased["owner"] != of_late["owner"]
    assert LEASE_S - 5 < _row(rows, batch)["lease_s"] <= LEASE_S
    assert _row(rows, other)["owner"] is None
    assert batch_turns.due(worker) == [other]


def test_a_lease_is_renewed_by_whose_it_is(worker: DictConnection, rows: Rows) -> None:
    batch = _batch(rows, rows.tenant())
    stale = batch_turns.lease(worker, batch)
    rows.connection.execute("UPDATE batches SET leased_until = now() - interval '1 s'")
    leased = batch_turns.lease(worker, batch)
    assert stale is not None
    assert leased is not None
    rows.connection.execute("UPDATE batches SET leased_until = now() + interval '1 s'")

    batch_turns.renew(worker, stale)
    assert _row(rows, batch)["lease_s"] <= 1
    batch_turns.renew(worker, leased)
    assert LEASE_S - 5 < _row(rows, batch)["lease_s"] <= LEASE_S
    batch_turns.release(worker, leased, Rest(pause_s=0))
    batch_turns.renew(worker, leased)
    assert _row(rows, batch)["owner"] is None


def test_a_step_that_commits_is_not_waited_for_to_renew_it(
    roles: Connections, worker: DictConnection, rows: Rows
) -> None:
    batch = _batch(rows, rows.tenant())
    leased = batch_turns.lease(worker, batch)
    assert leased is not None

    with roles.owner.transaction():
        roles.owner.execute("SELECT FROM batches FOR UPDATE")
        batch_turns.renew(worker, leased)


def test_a_batch_that_somebody_is_leasing_is_not_waited_for(
    roles: Connections, worker: DictConnection, rows: Rows
) -> None:
    batch = _batch(rows, rows.tenant())

    with roles.owner.transaction():
        assert batch_turns.lease(roles.owner, batch) is not None
        assert batch_turns.lease(worker, batch) is None


def test_a_tenant_with_very_many_batches_hides_none_that_waits_longer(
    worker: DictConnection, rows: Rows
) -> None:
    many, longest = _batch(rows, rows.tenant()), _batch(rows, rows.tenant())
    _due_in(rows, longest, -9)
    rows.connection.execute(
        "INSERT INTO batches SELECT new.* FROM batches b, generate_series(1, %s) n,"
        " LATERAL jsonb_populate_record(b, jsonb_build_object('id', md5(n::text),"
        " 'next_step_at', now() - interval '1 s')) new WHERE b.id = %s",
        (batch_turns.MAX_DUE, many),
    )

    due = batch_turns.due(worker)

    assert (due[0], len(due)) == (longest, 2)
    assert longest not in batch_turns.due(worker, aside=[longest])


def test_a_batch_that_rests_is_not_leased(worker: DictConnection, rows: Rows) -> None:
    batch = _batch(rows, rows.tenant())
    _due_in(rows, batch, 60)

    assert batch_turns.lease(worker, batch) is None


def test_a_step_leaves_when_the_next_one_is_and_why(worker: DictConnection, rows: Rows) -> None:
    batch = _batch(rows, rows.tenant())
    leased = batch_turns.lease(worker, batch)
    assert leased is not None

    batch_turns.release(
        worker, leased, Rest(pause_s=60, num_pauses=3, num_tries=2, waits_for=WAITS)
    )

    row = _row(rows, batch)
    assert (row["owner"], row["leased_until"], row["waits_for"]) == (None, None, WAITS)
    assert (row["num_pauses"], row["num_tries"]) == (3, 2)
    assert 50 < row["due_s"] <= 60


def test_a_step_leaves_nothing_in_a_batch_that_is_anothers_by_now(
    worker: DictConnection, rows: Rows
) -> None:
    tenant = rows.tenant()
    batch, other = _batch(rows, tenant), _batch(rows, tenant)
    late, of_other = batch_turns.lease(worker, batch), batch_turns.lease(worker, other)
    assert late is not None
    assert of_other is not None
    rows.connection.execute(
        "UPDATE batches SET leased_until = now() - interval '1 s' WHERE id = %s", (batch,)
    )
    leased = batch_turns.lease(worker, batch)
    assert leased is not None

    batch_turns.release(worker, late, Rest(pause_s=60))
    assert _row(rows, batch)["owner"] == leased["owner"]
    batch_turns.release(worker, leased, Rest(pause_s=60))

    row = _row(rows, batch)
    assert (row["owner"], row["waits_for"], row["has_no_reason"]) == (None, None, True)
    assert _row(rows, other)["owner"] == of_other["owner"]


@pytest.mark.parametrize(("pause_s", "least_s", "most_s"), [(60, 0.0, 1.0), (0.5, -0.5, 0.5)])
def test_a_batch_whose_window_is_over_rests_a_second_at_most(
    worker: DictConnection, rows: Rows, pause_s: float, least_s: float, most_s: float
) -> None:
    batch = _batch(rows, rows.tenant())
    leased = batch_turns.lease(worker, batch)
    assert leased is not None
    rows.connection.execute("UPDATE batches SET expires_at = now() - interval '60 s'")

    batch_turns.release(worker, leased, Rest(pause_s=pause_s))

    assert least_s < _row(rows, batch)["due_s"] <= most_s


def test_a_tenant_that_paid_wakes_what_waited_for_credit(
    worker: DictConnection, rows: Rows
) -> None:
    tenant, other = rows.tenant(), rows.tenant()
    waiting, busy, over = (_batch(rows, tenant) for _ in range(3))
    others = _batch(rows, other)
    for batch in (waiting, busy, over, others):
        _due_in(rows, batch, 600)
    rows.connection.execute(
        "UPDATE batches SET waits_for = %s::jsonb WHERE id <> %s",
        ('{"code": "insufficient_quota"}', busy),
    )
    rows.connection.execute(
        'UPDATE batches SET waits_for = \'{"code": "x"}\' WHERE id = %s', (busy,)
    )
    rows.connection.execute("UPDATE batches SET status = 'failed' WHERE id = %s", (over,))

    batch_turns.wake_for_credit(worker, tenant)

    assert _row(rows, waiting)["due_s"] <= 0
    assert all(_row(rows, batch)["due_s"] > 500 for batch in (busy, over, others))
