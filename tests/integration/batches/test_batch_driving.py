"""What drivers share: which batch is whose, and what one of them leaves behind."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from store import batch_driving, batch_turns
from store.batch_turns import Rest
from tasks.ids import uuid7
from tests.support.roles import Connections
from tests.support.rows import Rows


def _batch(rows: Rows, tenant_id: UUID, *, status: str = "in_progress", num_lines: int = 0) -> UUID:
    batch_id = uuid7()
    rows.connection.execute(
        "INSERT INTO batches (id, tenant_id, api_key_id, endpoint, completion_window, service_tier,"
        " input_file_id, status, expires_at) VALUES (%s, %s, 'key', '/v1/chat/completions', '24h',"
        " 'batch', %s, %s, now() + interval '1 day')",
        (batch_id, tenant_id, uuid7(), status),
    )
    batch_driving.add_lines(rows.connection, batch_id, [_line(n) for n in range(1, num_lines + 1)])
    return batch_id


def _line(number: int) -> dict[str, Any]:
    return {"number": number, "custom_id": f"line-{number}", "body": b"{}", "prefix": b""}


def _submit(rows: Rows, tenant_id: UUID, batch_id: UUID, number: int) -> UUID:
    """As a driver that dies before it can note down what it did."""
    job_id = rows.job(tenant_id)
    key = batch_driving.line_key(batch_id, number)
    rows.connection.execute(
        "UPDATE jobs SET batch_id = %s, idempotency_key = %s WHERE id = %s",
        (batch_id, key, job_id),
    )
    return job_id


def _die(rows: Rows) -> None:
    rows.connection.execute("UPDATE batches SET leased_until = now() - interval '1 second'")


def test_a_leased_batch_is_its_drivers_until_the_lease_is_over(
    roles: Connections, rows: Rows
) -> None:
    batch = _batch(rows, rows.tenant())

    first = batch_turns.lease(roles.worker, batch)
    assert first is not None
    assert batch_turns.due(roles.worker) == []
    assert batch_turns.lease(roles.worker, batch) is None
    _die(rows)
    second = batch_turns.lease(roles.worker, batch)
    assert second is not None
    assert second["owner"] != first["owner"]
    assert (second["is_unfinished"], second["num_tries"]) == (True, 1)


def test_a_step_that_ended_leaves_the_batch_to_anybody(roles: Connections, rows: Rows) -> None:
    batch = _batch(rows, rows.tenant())
    first = batch_turns.lease(roles.worker, batch)
    assert first is not None

    batch_turns.release(roles.worker, first, Rest(pause_s=0))

    second = batch_turns.lease(roles.worker, batch)
    assert second is not None
    assert (second["is_unfinished"], second["num_tries"]) == (False, 0)


def test_a_cancel_that_comes_during_a_step_is_not_slept_over(
    roles: Connections, rows: Rows
) -> None:
    batch = _batch(rows, rows.tenant())
    leased = batch_turns.lease(roles.worker, batch)
    assert leased is not None
    rows.connection.execute("UPDATE batches SET status = 'cancelling'")

    batch_turns.release(roles.worker, leased, Rest(pause_s=60))

    assert batch_turns.due(roles.worker) == [batch]


def test_the_end_of_the_window_is_not_slept_over(roles: Connections, rows: Rows) -> None:
    batch = _batch(rows, rows.tenant())
    leased = batch_turns.lease(roles.worker, batch)
    assert leased is not None
    rows.connection.execute("UPDATE batches SET expires_at = now() + interval '5 seconds'")

    batch_turns.release(roles.worker, leased, Rest(pause_s=60))

    assert rows.one("SELECT next_step_at <= expires_at AS is_so FROM batches")["is_so"]


def test_lines_that_a_driver_of_the_release_before_submitted_are_found(
    roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant()
    batch, other = (_batch(rows, tenant, num_lines=3) for _ in range(2))
    job = _submit(rows, tenant, batch, 2)
    leased = batch_turns.lease(roles.worker, batch)
    assert leased is not None

    batch_driving.take_over(roles.worker, leased)

    assert _pending(roles, batch) == [1, 3]
    assert _pending(roles, other) == [1, 2, 3]
    assert batch_driving.running_jobs(roles.worker, batch, limit=10) == [job]


def test_a_batch_that_a_driver_began_to_read_anew_is_read_anew(
    roles: Connections, rows: Rows
) -> None:
    batch = _batch(rows, rows.tenant(), status="validating", num_lines=2)
    rows.connection.execute("UPDATE batches SET num_total = 3, read_bytes = 9, read_lines = 3")
    leased = batch_turns.lease(roles.worker, batch)
    assert leased is not None

    batch_driving.take_over(roles.worker, leased)

    row = rows.one("SELECT num_total, read_bytes, read_lines FROM batches")
    assert set(row.values()) == {0}


def test_lines_to_submit_are_bounded_by_their_bytes(roles: Connections, rows: Rows) -> None:
    batch = _batch(rows, rows.tenant(), num_lines=5)  # of two bytes each

    for max_bytes, num in ((1, 1), (2, 1), (3, 2), (100, 5)):
        lines = batch_driving.pending_lines(roles.worker, batch, limit=9, max_bytes=max_bytes)
        assert len(lines) == num


def test_only_its_driver_ends_a_batch(roles: Connections, rows: Rows) -> None:
    batch = _batch(rows, rows.tenant(), num_lines=2)
    first = batch_turns.lease(roles.worker, batch)
    assert first is not None
    _die(rows)
    batch_turns.lease(roles.worker, batch)

    batch_driving.end(roles.worker, first, "completed")

    assert rows.one("SELECT status FROM batches")["status"] == "in_progress"


def _pending(roles: Connections, batch_id: UUID) -> list[int]:
    lines = batch_driving.pending_lines(roles.worker, batch_id, limit=10, max_bytes=1_000)
    return [line["number"] for line in lines]
