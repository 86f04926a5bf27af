"""What the sweeper finds and notes: which rows, in which order, and from which moment on."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from store import file_retention
from store.file_contents import StoredPart
from store.file_output import append_part, limit_outputs, open_output, parts_of
from store.pools import DictConnection
from tasks.ids import LEAST_ID, uuid7
from tests.support.rows import Rows

NO_TIME = "0 seconds"


@pytest.fixture
def tenant(rows: Rows) -> UUID:
    return rows.tenant()


@pytest.fixture
def connection(rows: Rows) -> DictConnection:
    """In one transaction of these tests now() stands still."""
    return rows.connection


def _file(connection: DictConnection, tenant: UUID, **ages: str) -> UUID:
    """A file of one part, with moments so long ago."""
    file_id = open_output(connection, tenant, filename="out.jsonl")
    append_part(connection, tenant, file_id, StoredPart(f"key/{file_id.hex}", 5, b"\0" * 32))
    _age(connection, "files", file_id, ages)
    return file_id


def _upload(connection: DictConnection, tenant: UUID, **ages: str) -> UUID:
    upload_id = uuid7()
    connection.execute(
        "INSERT INTO file_uploads (id, tenant_id, reserved_bytes) VALUES (%s, %s, 9)",
        (upload_id, tenant),
    )
    _age(connection, "file_uploads", upload_id, ages)
    return upload_id


def _age(connection: DictConnection, table: str, id_: UUID, ages: dict[str, str]) -> None:
    for column, age in ages.items():
        connection.execute(
            f"UPDATE {table} SET {column} = now() - %s::interval WHERE id = %s".encode(), (age, id_)
        )


def _all(connection: DictConnection, table: str) -> dict[UUID, dict[str, Any]]:
    found = connection.execute(f"SELECT * FROM {table}".encode()).fetchall()
    return {row["id"]: row for row in found}


def test_files_expire_at_their_moment_the_oldest_first(
    connection: DictConnection, tenant: UUID
) -> None:
    with connection.transaction():
        second = _file(connection, tenant, expires_at=NO_TIME)
        first = _file(connection, tenant, expires_at="1 second")
        young = _file(connection, tenant, expires_at="-1 second")
        forever = _file(connection, tenant)
        deleted = _file(connection, tenant, expires_at="1 hour", deleted_at="1 minute")
        before = _all(connection, "files")

        found = file_retention.expired_files(connection, batch=9)
        one = file_retention.expired_files(connection, batch=1)
        rest = file_retention.expired_files(connection, batch=9, aside=[first])
        num = file_retention.expire_files(connection, [second, young, forever, deleted])

        after = _all(connection, "files")
    assert (found, one, rest, num) == ([first, second], [first], [second], 1)
    assert {id_ for id_, row in after.items() if row != before[id_]} == {second}
    assert after[second]["deleted_at"] is not None


def test_deleted_files_are_found_by_id_until_their_contents_are_gone(
    connection: DictConnection, tenant: UUID
) -> None:
    first, second = sorted(_file(connection, tenant, deleted_at="1 hour") for _ in range(2))
    _file(connection, tenant)
    _file(connection, tenant, deleted_at="2 hours", purged_at="1 hour")

    def found(after: UUID, batch: int) -> list[tuple[UUID, UUID]]:
        return file_retention.deleted_files(connection, after=after, batch=batch)

    assert found(LEAST_ID, 9) == [(tenant, first), (tenant, second)]
    assert found(LEAST_ID, 1) == [(tenant, first)]
    assert found(first, 9) == [(tenant, second)]


def test_a_purged_file_keeps_a_row_that_says_nothing_of_its_contents(
    connection: DictConnection, tenant: UUID
) -> None:
    purged, other = (_file(connection, tenant, deleted_at="1 hour") for _ in range(2))
    before = _all(connection, "files")

    file_retention.note_purged(connection, purged)
    after = _all(connection, "files")
    file_retention.note_purged(connection, purged)

    changed = {"num_parts": 0, "filename": "", "purged_at": after[purged]["purged_at"]}
    assert after == {other: before[other], purged: before[purged] | changed}
    assert changed["purged_at"] is not None
    assert _all(connection, "files") == after
    left = connection.execute("SELECT file_id FROM file_parts").fetchall()
    assert [row["file_id"] for row in left] == [other]


def test_a_purged_file_is_looked_at_again_after_an_hour_and_forgotten(
    connection: DictConnection, tenant: UUID
) -> None:
    deleted = _file(connection, tenant, deleted_at="3 hours")
    with connection.transaction():
        ages = ("1 hour", "1 hour 1 second", "2 hours")
        young, second, first = (
            _file(connection, tenant, deleted_at="3 hours", purged_at=age) for age in ages
        )
        found = file_retention.purged_files(connection, batch=9)
        behind = file_retention.purged_files(connection, batch=9, aside=[first])
        one = file_retention.purged_files(connection, batch=1)
    for file_id in (first, deleted):
        file_retention.forget_file(connection, file_id)

    assert found == [(tenant, first), (tenant, second)]
    assert (behind, one) == (found[1:], found[:1])
    assert _all(connection, "files").keys() == {young, second, deleted}


def test_an_upload_is_lost_after_75_minutes_the_oldest_first(
    connection: DictConnection, tenant: UUID
) -> None:
    with connection.transaction():
        running = _upload(connection, tenant, started_at="75 minutes")
        second = _upload(connection, tenant, started_at="75 minutes 1 second")
        first = _upload(connection, tenant, started_at="76 minutes")
        given_up = _upload(connection, tenant, started_at="2 hours", abandoned_at="1 hour")

        found = file_retention.lost_uploads(connection, batch=9)
        one = file_retention.lost_uploads(connection, batch=1)
        rest = file_retention.lost_uploads(connection, batch=9, aside=[first])
        before = _all(connection, "file_uploads")
        num = file_retention.abandon_uploads(connection, [second, given_up])
        after = _all(connection, "file_uploads")

    assert (found, one, rest, num) == ([first, second], [first], [second], 1)
    assert after[second]["abandoned_at"] is not None
    assert {id_ for id_, row in after.items() if row != before[id_]} == {second}
    assert running in after


def test_only_abandoned_uploads_are_found_and_forgotten(
    connection: DictConnection, tenant: UUID
) -> None:
    first, second = sorted(_upload(connection, tenant, abandoned_at=NO_TIME) for _ in range(2))
    running = _upload(connection, tenant)

    def found(after: UUID, batch: int) -> list[tuple[UUID, UUID]]:
        return file_retention.abandoned_uploads(connection, after=after, batch=batch)

    assert found(LEAST_ID, 9) == [(tenant, first), (tenant, second)]
    assert found(LEAST_ID, 1) == [(tenant, first)]
    assert found(first, 9) == [(tenant, second)]
    for upload_id in (first, running):
        file_retention.forget_upload(connection, upload_id)
    assert _all(connection, "file_uploads").keys() == {second, running}


def test_a_file_is_read_until_its_contents_are_gone_and_by_its_tenant_alone(
    connection: DictConnection, tenant: UUID, rows: Rows
) -> None:
    file_id = _file(connection, tenant, deleted_at="1 minute")
    _file(connection, tenant)

    def keys(tenant_id: UUID) -> list[str]:
        return [part.object_key for part in parts_of(connection, tenant_id, file_id)]

    assert keys(tenant) == [f"key/{file_id.hex}"]
    assert keys(rows.tenant()) == []
    connection.execute("UPDATE files SET purged_at = now() WHERE id = %s", (file_id,))
    assert keys(tenant) == []


@pytest.mark.parametrize(
    ("age", "left"), [("1 hour", "1 hour"), ("30 minutes", "90 minutes"), ("40 days", "1 hour")]
)
def test_an_output_that_is_complete_stays_for_its_time_and_an_hour_at_least(
    connection: DictConnection, tenant: UUID, rows: Rows, age: str, left: str
) -> None:
    with connection.transaction():
        file_id, other = (_file(connection, tenant, created_at=age) for _ in range(2))
        gone = _file(connection, tenant, created_at=age, deleted_at="1 minute")
        before = _all(connection, "files")
        limit_outputs(connection, rows.tenant(), [file_id], ttl_s=7_200)
        assert _all(connection, "files") == before

        limit_outputs(connection, tenant, [file_id, gone, None], ttl_s=7_200)

        after = _all(connection, "files")
        until = rows.one("SELECT now() + %s::interval AS moment", left)["moment"]
    assert after[file_id]["expires_at"] == until
    assert (after[other], after[gone]) == (before[other], before[gone])


@pytest.mark.parametrize("ttl_s", [None, 60])
def test_an_output_begins_empty(
    connection: DictConnection, tenant: UUID, ttl_s: int | None
) -> None:
    file_id = open_output(connection, tenant, filename="out.jsonl", ttl_s=ttl_s)

    row = _all(connection, "files")[file_id]
    assert (row["tenant_id"], row["purpose"]) == (tenant, "batch_output")
    assert (row["filename"], row["status"]) == ("out.jsonl", "processed")
    assert (row["num_bytes"], row["num_parts"]) == (0, 0)
    ttl = row["expires_at"] and (row["expires_at"] - row["created_at"]).total_seconds()
    assert ttl == ttl_s
