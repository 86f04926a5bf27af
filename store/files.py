"""Files as the API sees them: live ones of one tenant. Every query names the tenant.

An upload is begun (and part of the quota reserved), then its contents are stored, then it is
committed as a file or abandoned. What a crash leaves in between, the sweeper abandons later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from store.file_contents import StoredPart
from store.pools import AsyncPool, as_tenant
from tasks.ids import GREATEST_ID, LEAST_ID

FileRow = dict[str, Any]

BATCH_TTL_S = 30 * 86_400  # of input and output files of batches, unless told otherwise
UPLOAD_MAX_S = 3_600.0  # a slower client is cut off
MAX_FILES = 100_000  # a tenant; the sums below look at each of them


class Purpose(StrEnum):
    """What a file is for. Stored and sent."""

    BATCH = "batch"  # the input of a batch
    BATCH_OUTPUT = "batch_output"  # written by us: results or errors of a batch
    USER_DATA = "user_data"  # kept for the tenant, read by nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFile:
    """What an upload turned out to be."""

    id: UUID
    tenant_id: UUID
    purpose: Purpose
    filename: str
    ttl_s: int | None
    part: StoredPart


@dataclass(frozen=True, slots=True)
class ReadPart:
    """A part of a file to read."""

    object_key: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Parts:
    """What a file consists of, in order. An output file has a part for each step of its batch that
    wrote to it: two long lists are made in a few ms, and tens of thousands of pairs are not.
    """

    object_keys: Sequence[str]
    sizes: Sequence[int]  # in bytes

    @property
    def num_bytes(self) -> int:
        return sum(self.sizes)


_COLUMNS = """
id, purpose, filename, num_bytes, status, status_details, created_at, expires_at
"""

_LIVE = """
tenant_id = %(tenant_id)s AND deleted_at IS NULL AND (expires_at IS NULL OR expires_at > now())
"""

# Uploads of one tenant begin one after the other: each must see what the others have reserved.
_LOCK_UPLOADS = "SELECT pg_advisory_xact_lock(1718185061, hashtext(%(tenant_id)s::text))"  # "file"

_STORED = f"""
SELECT count(*) AS num, coalesce(sum(num_bytes), 0)::bigint AS num_bytes FROM files WHERE {_LIVE}
"""

_BEGIN = f"""
WITH stored AS ({_STORED}), coming AS (
    SELECT count(*) AS num, coalesce(sum(reserved_bytes), 0)::bigint AS num_bytes
    FROM file_uploads WHERE tenant_id = %(tenant_id)s
), room AS (
    SELECT %(quota_bytes)s - stored.num_bytes - coming.num_bytes AS num_bytes FROM stored, coming
    WHERE stored.num + coming.num < %(max_files)s
)
INSERT INTO file_uploads (id, tenant_id, reserved_bytes)
SELECT %(id)s, %(tenant_id)s, least(%(most)s, num_bytes) FROM room WHERE num_bytes >= %(least)s
RETURNING reserved_bytes
"""

_COMMIT = f"""
WITH upload AS (
    DELETE FROM file_uploads
    WHERE id = %(id)s AND tenant_id = %(tenant_id)s AND abandoned_at IS NULL
    RETURNING id
), file AS (
    INSERT INTO files (id, tenant_id, purpose, filename, num_bytes, num_parts, sha256, status,
        expires_at)
    SELECT id, %(tenant_id)s, %(purpose)s, %(filename)s, %(num_bytes)s, 1, %(sha256)s, 'processed',
        now() + make_interval(secs => %(ttl_s)s)
    FROM upload
    RETURNING {_COLUMNS}
), part AS (
    INSERT INTO file_parts (file_id, number, tenant_id, object_key, num_bytes)
    SELECT id, 1, %(tenant_id)s, %(object_key)s, %(num_bytes)s FROM file
)
SELECT * FROM file
"""

_ABANDON = """
UPDATE file_uploads SET abandoned_at = now() WHERE id = %s AND tenant_id = %s
"""

_FORGET = """
DELETE FROM file_uploads WHERE id = %s AND tenant_id = %s AND abandoned_at IS NOT NULL
"""

_GET = f"SELECT {_COLUMNS} FROM files WHERE id = %(id)s AND {_LIVE}"

_LIST = f"SELECT {_COLUMNS} FROM files WHERE {_LIVE}"
_OF_PURPOSE = " AND purpose = %(purpose)s"  # has an index of its own

_NEWEST_FIRST = " AND id < %(after)s ORDER BY id DESC LIMIT %(limit)s"
_OLDEST_FIRST = " AND id > %(after)s ORDER BY id LIMIT %(limit)s"

_PARTS = """
SELECT coalesce(array_agg(object_key ORDER BY number), '{}') AS object_keys,
    coalesce(array_agg(num_bytes ORDER BY number), '{}') AS sizes
FROM file_parts WHERE file_id = %s AND tenant_id = %s
"""

_DELETE = f"UPDATE files SET deleted_at = now() WHERE id = %(id)s AND {_LIVE}"


async def begin_upload(
    pool: AsyncPool, tenant_id: UUID, upload_id: UUID, *, least: int, most: int, quota_bytes: int
) -> int | None:
    """Reserve at least and at most so many bytes. Returns how many, None if there is no room."""
    parameters = {
        "id": upload_id,
        "tenant_id": tenant_id,
        "least": least,
        "most": most,
        "quota_bytes": quota_bytes,
        "max_files": MAX_FILES,
    }
    async with as_tenant(pool, tenant_id) as connection:
        await connection.execute(_LOCK_UPLOADS, parameters)
        cursor = await connection.execute(_BEGIN, parameters)
        row = await cursor.fetchone()
    return row["reserved_bytes"] if row else None


async def has_room(pool: AsyncPool, tenant_id: UUID, *, quota_bytes: int) -> bool:
    """Whether a tenant may have one more file, of at least a byte. Uploads on their way don't
    count.
    """
    async with as_tenant(pool, tenant_id) as connection:
        row = await (await connection.execute(_STORED, {"tenant_id": tenant_id})).fetchone()
    assert row is not None
    return bool(row["num"] < MAX_FILES and row["num_bytes"] < quota_bytes)


async def commit_upload(pool: AsyncPool, new: NewFile) -> FileRow | None:
    """Make it a file. None if it was abandoned meanwhile."""
    parameters = {
        "id": new.id,
        "tenant_id": new.tenant_id,
        "purpose": new.purpose,
        "filename": new.filename,
        "ttl_s": new.ttl_s,
        "num_bytes": new.part.num_bytes,
        "sha256": new.part.sha256,
        "object_key": new.part.object_key,
    }
    async with as_tenant(pool, new.tenant_id) as connection:
        cursor = await connection.execute(_COMMIT, parameters)
        return await cursor.fetchone()


async def abandon_upload(pool: AsyncPool, tenant_id: UUID, upload_id: UUID) -> bool:
    """It can never become a file. False if it has, or is forgotten: then leave its contents."""
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(_ABANDON, (upload_id, tenant_id))
    return cursor.rowcount == 1


async def forget_upload(pool: AsyncPool, tenant_id: UUID, upload_id: UUID) -> None:
    """After an abandoned upload's contents are gone."""
    async with as_tenant(pool, tenant_id) as connection:
        await connection.execute(_FORGET, (upload_id, tenant_id))


async def get_file(pool: AsyncPool, tenant_id: UUID, file_id: UUID) -> FileRow | None:
    """A tenant's file, None if it has no such file."""
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(_GET, {"id": file_id, "tenant_id": tenant_id})
        return await cursor.fetchone()


async def list_files(
    pool: AsyncPool,
    tenant_id: UUID,
    *,
    purpose: str | None,
    after: UUID | None,
    limit: int,
    is_newest_first: bool,
) -> list[FileRow]:
    """A tenant's files, those after `after` in the order asked for."""
    after = after or (GREATEST_ID if is_newest_first else LEAST_ID)
    parameters = {"tenant_id": tenant_id, "purpose": purpose, "after": after, "limit": limit}
    query = _LIST + (_OF_PURPOSE if purpose else "")
    query += _NEWEST_FIRST if is_newest_first else _OLDEST_FIRST
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(query, parameters)
        return await cursor.fetchall()


async def list_parts(pool: AsyncPool, tenant_id: UUID, file_id: UUID) -> Parts:
    """What a file consists of now. One that grows only gets more."""
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(_PARTS, (file_id, tenant_id))
        [row] = await cursor.fetchall()
    return Parts(**row)


async def delete_file(pool: AsyncPool, tenant_id: UUID, file_id: UUID) -> bool:
    """Hide a file at once; the sweeper removes its contents. False if there is none."""
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute(_DELETE, {"id": file_id, "tenant_id": tenant_id})
    return cursor.rowcount == 1
