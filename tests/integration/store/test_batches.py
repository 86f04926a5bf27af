"""Batches as the API makes, reads, cancels and deletes them, row by row."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest

from store import batches, deletion
from store.batches import BatchQuota, NewBatch
from store.file_output import open_output
from tasks.errors import BatchQuotaExceeded
from tasks.ids import uuid7
from tests.integration.store.conftest import AsApi
from tests.support.rows import Rows

QUOTA = BatchQuota(max_batches=2, max_bytes=100)
OPEN = ("validating", "in_progress")
LIVE = (*OPEN, "finalizing", "cancelling")
STATUSES = (*LIVE, "completed", "failed", "expired", "cancelled")


def _new(tenant: UUID, **fields: Any) -> NewBatch:
    new = NewBatch(
        id=uuid7(),
        tenant_id=tenant,
        api_key_id="key",
        endpoint="/v1/responses",
        completion_window="24h",
        window_s=86_400,
        service_tier="batch",
        input_file_id=uuid7(),
        input_bytes=10,
        output_ttl_s=None,
        metadata={},
    )
    return replace(new, **fields)


def _make(as_api: AsApi, tenant: UUID, quota: BatchQuota = QUOTA, **fields: Any) -> UUID:
    new = _new(tenant, **fields)
    as_api(lambda pool: batches.create_batch(pool, new, quota))
    return new.id


def _row(rows: Rows, batch: UUID) -> dict[str, Any]:
    return rows.one("SELECT * FROM batches WHERE id = %s", batch)


def _set(rows: Rows, batch: UUID, **columns: Any) -> dict[str, Any]:
    """Its row, which was last written long ago."""
    for name, value in {"next_step_at": "2026-01-01", **columns}.items():
        rows.connection.execute(
            f"UPDATE batches SET {name} = %s WHERE id = %s".encode(), (value, batch)
        )
    return _row(rows, batch)


def test_a_new_batch_is_what_was_asked_for(as_api: AsApi, rows: Rows) -> None:
    new = _new(rows.tenant(), output_ttl_s=7_200, metadata={"a": "b"}, input_bytes=100)
    as_api(lambda pool: batches.create_batch(pool, new, QUOTA))

    found = as_api(lambda pool: batches.get_batch(pool, new.tenant_id, new.id))

    assert found is not None
    asked = {name: getattr(new, name) for name in NewBatch.__slots__ if name != "window_s"}
    assert found == found | asked
    assert found["expires_at"] - found["created_at"] == timedelta(seconds=new.window_s)
    assert (found["status"], found["deleted_at"]) == ("validating", None)


@pytest.mark.parametrize("status", STATUSES)
def test_batches_that_are_not_over_take_room(as_api: AsApi, rows: Rows, status: str) -> None:
    tenant = rows.tenant()
    first, second = (_make(as_api, tenant, input_bytes=40) for _ in range(2))
    for batch in (first, second):
        _set(rows, batch, status=status)

    if status in LIVE:
        with pytest.raises(BatchQuotaExceeded) as too_many:
            _make(as_api, tenant)
        with pytest.raises(BatchQuotaExceeded) as too_large:
            _make(as_api, tenant, replace(QUOTA, max_batches=3), input_bytes=21)
        end = " Wait for one to end, or cancel one."
        has = "You have 2 batches that are not over, and may have 2."
        assert (str(too_many.value), too_many.value.param) == (has + end, "input_file_id")
        takes = (
            "Your batches that are not over take 80 bytes of the 100 they may take,"
            " and this one has 21."
        )
        assert str(too_large.value) == takes + end
        _make(as_api, tenant, replace(QUOTA, max_batches=3), input_bytes=20)
    else:
        _make(as_api, tenant, input_bytes=100)


def test_batches_that_are_over_are_bounded_too_until_they_are_deleted_and_gone(
    as_api: AsApi, rows: Rows
) -> None:
    tenant, other = rows.tenant(), rows.tenant()
    quota = replace(QUOTA, max_kept=2)
    kept = [_make(as_api, tenant, quota) for _ in range(2)]
    for batch in kept:
        _set(rows, batch, status="cancelled")

    with pytest.raises(BatchQuotaExceeded) as too_many:
        _make(as_api, tenant, quota)
    _make(as_api, other, quota)
    as_api(lambda pool: batches.delete_batch(pool, tenant, kept[0]))
    with pytest.raises(BatchQuotaExceeded):
        _make(as_api, tenant, quota)  # its row is still there
    deletion.remove_batch(rows.connection, kept[0])
    _make(as_api, tenant, quota)

    assert str(too_many.value) == (
        "You have 2 batches, those that are over included, and may have no more. Delete some."
    )


def test_a_tenants_own_quota_goes_first_each_number_by_itself(as_api: AsApi, rows: Rows) -> None:
    tenant = rows.tenant()
    rows.connection.execute("UPDATE tenants SET max_batches = 1 WHERE id = %s", (tenant,))

    _make(as_api, tenant)
    with pytest.raises(BatchQuotaExceeded, match="may have 1"):
        _make(as_api, tenant)
    rows.connection.execute(
        "UPDATE tenants SET max_batches = NULL, max_batch_bytes = 19 WHERE id = %s", (tenant,)
    )
    with pytest.raises(BatchQuotaExceeded, match="of the 19"):
        _make(as_api, tenant)


@pytest.mark.parametrize("status", STATUSES)
def test_what_is_over_or_ending_is_not_cancelled(as_api: AsApi, rows: Rows, status: str) -> None:
    tenant = rows.tenant()
    batch, other = (_make(as_api, tenant) for _ in range(2))
    before, before_other = _set(rows, batch, status=status), _row(rows, other)

    as_api(lambda pool: batches.cancel_batch(pool, tenant, batch))

    row = _row(rows, batch)
    moment = row["cancelling_at"]
    changes = {"status": "cancelling", "cancelling_at": moment, "next_step_at": moment}
    assert row == (before | changes if status in OPEN else before)
    assert (moment is not None) is (status in OPEN)
    assert _row(rows, other) == before_other


@pytest.mark.parametrize("status", STATUSES)
def test_a_batch_is_deleted_once_with_the_files_it_wrote(
    as_api: AsApi, rows: Rows, status: str
) -> None:
    tenant = rows.tenant()
    batch, other = (_make(as_api, tenant) for _ in range(2))
    output, errors, gone, foreign = (
        open_output(rows.connection, tenant, filename="x") for _ in range(4)
    )
    rows.connection.execute(
        "UPDATE files SET deleted_at = '2026-01-01' WHERE id = ANY(%s)", ([errors, gone],)
    )
    files = {"output_file_id": output, "error_file_id": errors}
    before = _set(rows, batch, status=status, cancelling_at="2026-01-01", **files)
    before_other = _row(rows, other)

    assert _delete(as_api, tenant, batch)
    row = _row(rows, batch)
    moment = row["deleted_at"]
    changes = {"deleted_at": moment, "next_step_at": moment}
    if status in OPEN:
        changes |= {"status": "cancelling", "cancelling_at": moment}
    assert moment is not None
    assert row == before | changes
    assert _row(rows, other) == before_other
    found = rows.connection.execute("SELECT id, deleted_at FROM files").fetchall()
    deleted_at = {each["id"]: each["deleted_at"] for each in found}
    assert (deleted_at[output], deleted_at[foreign]) == (moment, None)
    assert deleted_at[errors] == deleted_at[gone] == before["cancelling_at"]
    assert not _delete(as_api, tenant, batch)
    assert _row(rows, batch) == row


def test_deleted_batches_are_neither_found_nor_listed(as_api: AsApi, rows: Rows) -> None:
    tenant = rows.tenant()
    quota = replace(QUOTA, max_batches=9)
    made = [_make(as_api, tenant, quota) for _ in range(4)]
    assert _delete(as_api, tenant, made[1])

    def listed(after: UUID | None, limit: int) -> list[UUID]:
        found = as_api(lambda pool: batches.list_batches(pool, tenant, after=after, limit=limit))
        return [row["id"] for row in found]

    assert listed(None, 9) == [made[3], made[2], made[0]]
    assert listed(None, 2) == [made[3], made[2]]
    assert listed(made[2], 9) == [made[0]]
    for batch in (made[1], uuid4()):
        assert not _delete(as_api, tenant, batch)
        get = partial(batches.get_batch, tenant_id=tenant, batch_id=batch)
        assert as_api(get) is None


def _delete(as_api: AsApi, tenant: UUID, batch: UUID) -> bool:
    return as_api(lambda pool: batches.delete_batch(pool, tenant, batch))
