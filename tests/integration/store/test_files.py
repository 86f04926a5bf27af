"""Rows of files: uploads that become files or don't, growing files, who sees what."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from cli.stack.database import DatabaseUrls
from store import files
from store.file_contents import StoredPart
from store.file_output import append_part, open_output, parts_of
from store.files import FileRow, NewFile, Parts, Purpose
from store.pools import SET_TENANT, AsyncPool, DictConnection, connect
from tasks.ids import uuid7
from tests.integration.store.conftest import AsApi
from tests.support.rows import Rows

QUOTA = 1_000


@pytest.fixture
def tenants(database: DatabaseUrls) -> tuple[UUID, UUID]:
    with connect(database.owner, application_name="test") as owner:
        rows = Rows(owner)
        return rows.tenant(), rows.tenant()


def _part(num_bytes: int = 10) -> StoredPart:
    return StoredPart(f"key/{uuid4().hex}", num_bytes, b"\0" * 32)


def _new(tenant: UUID, file_id: UUID, num_bytes: int = 10) -> NewFile:
    return NewFile(
        id=file_id,
        tenant_id=tenant,
        purpose=Purpose.BATCH,
        filename="in.jsonl",
        ttl_s=None,
        part=_part(num_bytes),
    )


async def _begin(
    pool: AsyncPool, tenant: UUID, *, least: int = 10, most: int = 10
) -> tuple[UUID, int | None]:
    file_id = uuid7()
    reserved = await files.begin_upload(
        pool, tenant, file_id, least=least, most=most, quota_bytes=QUOTA
    )
    return file_id, reserved


def test_an_upload_becomes_a_file_once(as_api: AsApi, tenants: tuple[UUID, UUID]) -> None:
    tenant = tenants[0]

    async def ask(pool: AsyncPool) -> tuple[FileRow | None, FileRow | None, bool]:
        file_id, _ = await _begin(pool, tenant)
        first = await files.commit_upload(pool, _new(tenant, file_id))
        second = await files.commit_upload(pool, _new(tenant, file_id))
        return first, second, await files.abandon_upload(pool, tenant, file_id)

    first, second, is_abandoned = as_api(ask)

    assert first is not None
    assert (first["num_bytes"], first["expires_at"]) == (10, None)
    assert second is None
    assert not is_abandoned  # so nobody removes the contents of a file


def test_an_abandoned_upload_never_becomes_a_file(
    as_api: AsApi, tenants: tuple[UUID, UUID]
) -> None:
    tenant = tenants[0]

    async def ask(pool: AsyncPool) -> tuple[bool, FileRow | None]:
        file_id, _ = await _begin(pool, tenant)
        is_abandoned = await files.abandon_upload(pool, tenant, file_id)
        return is_abandoned, await files.commit_upload(pool, _new(tenant, file_id))

    assert as_api(ask) == (True, None)


def test_reservations_count_until_they_are_gone(as_api: AsApi, tenants: tuple[UUID, UUID]) -> None:
    tenant, other = tenants

    async def ask(pool: AsyncPool) -> list[int | None]:
        first, reserved = await _begin(pool, tenant, least=600, most=600)
        _, too_much = await _begin(pool, tenant, least=401, most=401)
        undeclared, rest = await _begin(pool, tenant, least=1, most=5_000)
        _, nothing_left = await _begin(pool, tenant, least=1, most=5_000)
        _, others = await _begin(pool, other, least=QUOTA, most=QUOTA)
        await files.commit_upload(pool, _new(tenant, first, num_bytes=100))
        await files.abandon_upload(pool, tenant, undeclared)
        await files.forget_upload(pool, tenant, undeclared)
        _, after = await _begin(pool, tenant, least=1, most=5_000)
        return [reserved, too_much, rest, nothing_left, others, after]

    assert as_api(ask) == [600, None, 400, None, QUOTA, 900]


def test_there_is_room_for_one_more_until_all_is_taken(
    as_api: AsApi, tenants: tuple[UUID, UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant, other = tenants

    async def ask(pool: AsyncPool) -> list[bool]:
        found = []
        for num_bytes in (QUOTA - 1, 1):
            stored, _ = await _begin(pool, tenant, least=num_bytes, most=num_bytes)
            await files.commit_upload(pool, _new(tenant, stored, num_bytes=num_bytes))
            found.append(await files.has_room(pool, tenant, quota_bytes=QUOTA))
        found.append(await files.has_room(pool, other, quota_bytes=QUOTA))
        for number in (3, 2):
            monkeypatch.setattr(files, "MAX_FILES", number)
            found.append(await files.has_room(pool, tenant, quota_bytes=QUOTA + 1))
        return found

    assert as_api(ask) == [True, False, True, True, False]


def test_a_tenant_has_a_bounded_number_of_files(
    as_api: AsApi, tenants: tuple[UUID, UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_FILES", 2)

    async def ask(pool: AsyncPool) -> list[int | None]:
        return [(await _begin(pool, tenants[0]))[1] for _ in range(3)]

    assert as_api(ask) == [10, 10, None]


def test_stored_files_and_coming_ones_count_together_until_they_are_gone(
    as_api: AsApi,
    connection: DictConnection,
    tenants: tuple[UUID, UUID],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files, "MAX_FILES", 2)
    tenant = tenants[0]

    async def ask(pool: AsyncPool) -> UUID:
        stored, _ = await _begin(pool, tenant)
        await files.commit_upload(pool, _new(tenant, stored, num_bytes=QUOTA - 10))
        await _begin(pool, tenant)
        return stored

    def begin() -> int | None:
        return as_api(lambda pool: _begin(pool, tenant, least=1, most=QUOTA))[1]

    stored = as_api(ask)
    assert begin() is None
    connection.execute("UPDATE files SET expires_at = now() + interval '1 hour'")
    assert begin() is None
    connection.execute("UPDATE files SET expires_at = now()")
    assert begin() == QUOTA - 10
    connection.execute("DELETE FROM file_uploads")
    connection.execute("UPDATE files SET expires_at = NULL, deleted_at = now()")
    assert begin() == QUOTA
    assert as_api(lambda pool: files.get_file(pool, tenant, stored)) is None


@pytest.mark.parametrize("ttl_s", [None, 3_600])
def test_a_new_file_is_what_the_upload_said(
    as_api: AsApi, connection: DictConnection, tenants: tuple[UUID, UUID], ttl_s: int | None
) -> None:
    file_id = uuid7()
    new = replace(_new(tenants[0], file_id, num_bytes=7), ttl_s=ttl_s)

    async def ask(pool: AsyncPool) -> tuple[FileRow | None, FileRow | None, Parts]:
        await files.begin_upload(pool, tenants[0], file_id, least=7, most=7, quota_bytes=7)
        made = await files.commit_upload(pool, new)
        found = await files.get_file(pool, tenants[0], file_id)
        return made, found, await files.list_parts(pool, tenants[0], file_id)

    made, found, parts = as_api(ask)

    assert made == found
    assert made is not None
    expires_at = made["created_at"] + timedelta(seconds=ttl_s) if ttl_s else None
    assert made == {
        "id": file_id,
        "purpose": "batch",
        "filename": "in.jsonl",
        "num_bytes": 7,
        "status": "processed",
        "status_details": None,
        "created_at": made["created_at"],
        "expires_at": expires_at,
    }
    assert parts == Parts([new.part.object_key], [7])
    assert connection.execute("SELECT * FROM file_uploads").fetchall() == []
    row = connection.execute("SELECT num_parts, sha256 FROM files").fetchone()
    assert row == {"num_parts": 1, "sha256": new.part.sha256}


def test_an_upload_is_forgotten_only_once_it_is_abandoned(
    as_api: AsApi, connection: DictConnection, tenants: tuple[UUID, UUID]
) -> None:
    async def ask(pool: AsyncPool) -> None:
        upload, _ = await _begin(pool, tenants[0])
        await files.forget_upload(pool, tenants[0], upload)

    as_api(ask)

    assert len(connection.execute("SELECT * FROM file_uploads").fetchall()) == 1


def test_files_are_paged_in_either_order_and_by_their_purpose(
    as_api: AsApi, connection: DictConnection, tenants: tuple[UUID, UUID]
) -> None:
    made = sorted(open_output(connection, tenants[0], filename="x") for _ in range(4))
    connection.execute("UPDATE files SET purpose = 'batch' WHERE id = %s", (made[1],))

    def page(
        *, is_newest_first: bool, after: UUID | None = None, purpose: str | None = None
    ) -> list[UUID]:
        found = as_api(
            lambda pool: files.list_files(
                pool,
                tenants[0],
                purpose=purpose,
                after=after,
                limit=2,
                is_newest_first=is_newest_first,
            )
        )
        return [row["id"] for row in found]

    for is_newest_first, order in ((False, made), (True, made[::-1])):
        assert page(is_newest_first=is_newest_first) == order[:2]
        assert page(is_newest_first=is_newest_first, after=order[1]) == order[2:]
        assert page(is_newest_first=is_newest_first, purpose="batch") == [made[1]]


@pytest.mark.parametrize("column", ["deleted_at", "expires_at"])
def test_a_file_that_is_gone_is_nowhere(
    as_api: AsApi, connection: DictConnection, tenants: tuple[UUID, UUID], column: str
) -> None:
    tenant = tenants[0]
    gone, kept = (open_output(connection, tenant, filename="x", ttl_s=60) for _ in range(2))
    connection.execute(f"UPDATE files SET {column} = now() WHERE id = %s".encode(), (gone,))

    async def ask(pool: AsyncPool) -> tuple[FileRow | None, bool, list[FileRow]]:
        found = await files.get_file(pool, tenant, gone)
        is_deleted = await files.delete_file(pool, tenant, gone)
        listed = await files.list_files(
            pool, tenant, purpose=None, after=None, limit=9, is_newest_first=True
        )
        return found, is_deleted, listed

    found, is_deleted, listed = as_api(ask)

    assert (found, is_deleted, [row["id"] for row in listed]) == (None, False, [kept])
    deleted = connection.execute("SELECT id FROM files WHERE deleted_at IS NOT NULL").fetchall()
    assert [row["id"] for row in deleted] == ([gone] if column == "deleted_at" else [])


def test_parts_are_listed_in_their_order(
    as_api: AsApi, connection: DictConnection, tenants: tuple[UUID, UUID]
) -> None:
    file_id, other = (open_output(connection, tenants[0], filename="x") for _ in range(2))
    parts = [_part(number) for number in (5, 6, 7)]
    for part in parts:
        append_part(connection, tenants[0], file_id, part)
    append_part(connection, tenants[0], other, _part())
    connection.execute("UPDATE file_parts SET number = 9 WHERE number = 1")

    found = as_api(lambda pool: files.list_parts(pool, tenants[0], file_id))

    keys = [part.object_key for part in parts]
    assert found == Parts([keys[1], keys[2], keys[0]], [6, 7, 5])
    assert found.num_bytes == 18


def test_an_output_file_grows_by_parts_in_their_order(
    connection: DictConnection, tenants: tuple[UUID, UUID]
) -> None:
    file_id = open_output(connection, tenants[0], filename="out.jsonl", ttl_s=60)
    parts = [_part(number) for number in (5, 6, 7)]

    appended = [append_part(connection, tenants[0], file_id, part) for part in parts]
    foreign = append_part(connection, tenants[1], file_id, _part())

    assert appended == [True, True, True]
    assert not foreign
    found = parts_of(connection, tenants[0], file_id)
    assert [(p.object_key, p.num_bytes) for p in found] == [
        (p.object_key, p.num_bytes) for p in parts
    ]
    row = connection.execute("SELECT num_bytes, num_parts FROM files").fetchone()
    assert row == {"num_bytes": 18, "num_parts": 3}


def test_a_part_is_there_only_after_its_transaction(
    connection: DictConnection, database: DatabaseUrls, tenants: tuple[UUID, UUID]
) -> None:
    file_id = open_output(connection, tenants[0], filename="out.jsonl", ttl_s=None)

    with connection.transaction(force_rollback=True):
        append_part(connection, tenants[0], file_id, _part())
    with connection.transaction():
        append_part(connection, tenants[0], file_id, _part())

    assert len(parts_of(connection, tenants[0], file_id)) == 1


def test_a_deleted_file_takes_no_more_parts(
    as_api: AsApi, connection: DictConnection, tenants: tuple[UUID, UUID]
) -> None:
    file_id = open_output(connection, tenants[0], filename="out.jsonl", ttl_s=None)
    deleted = as_api(lambda pool: files.delete_file(pool, tenants[0], file_id))

    assert deleted
    assert not append_part(connection, tenants[0], file_id, _part())


def test_the_api_role_sees_and_changes_no_other_tenants_files(
    connection: DictConnection, database: DatabaseUrls, tenants: tuple[UUID, UUID]
) -> None:
    mine = open_output(connection, tenants[0], filename="out.jsonl", ttl_s=None)
    append_part(connection, tenants[0], mine, _part())
    connection.execute(
        "INSERT INTO file_uploads (id, tenant_id, reserved_bytes) VALUES (%s, %s, 1)",
        (uuid7(), tenants[0]),
    )

    with connect(database.api, application_name="test") as api:
        seen = {}
        for tenant in (*tenants, None):
            with api.transaction():
                if tenant is not None:
                    api.execute(SET_TENANT, (str(tenant),))
                seen[tenant] = [
                    len(api.execute(f"SELECT * FROM {table}".encode()).fetchall())
                    for table in ("files", "file_parts", "file_uploads")
                ]
        api.execute("SELECT set_config('app.tenant_id', %s, false)", (str(tenants[1]),))
        for statement in (
            "INSERT INTO file_uploads (id, tenant_id, reserved_bytes) SELECT %s, %s, 1",
            "UPDATE files SET num_bytes = 0 WHERE id = %s OR tenant_id = %s",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                api.execute(statement.encode(), (uuid7(), tenants[0]))
    assert seen == {tenants[0]: [1, 1, 1], tenants[1]: [0, 0, 0], None: [0, 0, 0]}
