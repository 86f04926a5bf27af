"""What drivers share: which batch is whose, and what one of them leaves behind."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from store import batch_driving
from store.batch_driving import LEASED_AT_ONCE
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
    custom_id, body = f"line-{number}", b"{}"
    return {"number": number, "custom_id": custom_id, "body": body, "prefix": b"", "error": None}


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


def test_batches_that_can_not_go_on_hold_up_no_others(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant()
    batches = {_batch(rows, tenant) for _ in range(2 * LEASED_AT_ONCE)}
    driver = uuid4()

    turns = [batch_driving.lease(roles.worker, driver) for _ in range(2)]

    assert {batch["id"] for turn in turns for batch in turn} == batches


def test_a_leased_batch_is_its_drivers_until_the_lease_is_over(
    roles: Connections, rows: Rows
) -> None:
    batch = _batch(rows, rows.tenant())
    first, second = uuid4(), uuid4()

    assert [row["id"] for row in batch_driving.lease(roles.worker, first)] == [batch]
    assert batch_driving.lease(roles.worker, second) == []
    assert [row["id"] for row in batch_driving.lease(roles.worker, first)] == [batch]
    _die(rows)
    assert [row["id"] for row in batch_driving.lease(roles.worker, second)] == [batch]


def test_lines_that_a_dead_driver_submitted_are_found_by_the_next(
    roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant()
    batch = _batch(rows, tenant, num_lines=3)
    batch_driving.lease(roles.worker, uuid4())
    job = _submit(rows, tenant, batch, 2)  # and no idempotency key stands for it any more
    _die(rows)

    batch_driving.lease(roles.worker, uuid4())

    pending = batch_driving.pending_lines(roles.worker, batch, limit=10)
    assert [line["number"] for line in pending] == [1, 3]
    assert batch_driving.running_jobs(roles.worker, batch, limit=10) == [job]


def test_jobs_of_other_batches_are_not_taken_for_a_line(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant()
    batch, other = (_batch(rows, tenant, num_lines=1) for _ in range(2))
    _submit(rows, tenant, other, 1)

    batch_driving.lease(roles.worker, uuid4())

    assert batch_driving.pending_lines(roles.worker, batch, limit=10)
    assert not batch_driving.pending_lines(roles.worker, other, limit=10)


def test_a_batch_that_is_over_keeps_no_lines(roles: Connections, rows: Rows) -> None:
    batch = _batch(rows, rows.tenant(), num_lines=2)
    driver = uuid4()
    batch_driving.lease(roles.worker, driver)

    batch_driving.end(roles.worker, batch, driver, "completed")

    assert rows.one("SELECT count(*) AS num FROM batch_lines")["num"] == 0
    assert rows.one("SELECT status FROM batches")["status"] == "completed"


def test_only_its_driver_ends_a_batch(roles: Connections, rows: Rows) -> None:
    batch = _batch(rows, rows.tenant(), num_lines=2)
    first, second = uuid4(), uuid4()
    batch_driving.lease(roles.worker, first)
    _die(rows)
    batch_driving.lease(roles.worker, second)

    batch_driving.end(roles.worker, batch, first, "completed")

    assert len(batch_driving.pending_lines(roles.worker, batch, limit=10)) == 2
    assert rows.one("SELECT status FROM batches")["status"] == "in_progress"
