"""What the sweeper asks and notes. Contents are removed between finding and noting; both sides are
safe to repeat, and any number of sweepers may run.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from store.files import UPLOAD_MAX_S
from store.pools import DictConnection

UPLOAD_TTL_S = UPLOAD_MAX_S + 900  # an upload that is older has lost its process

_EXPIRED = """
SELECT id FROM files
WHERE deleted_at IS NULL AND expires_at <= now() AND id <> ALL(%s::uuid[])
ORDER BY expires_at LIMIT %s
"""

_EXPIRE = """
UPDATE files SET deleted_at = now()
WHERE id = ANY(%s) AND deleted_at IS NULL AND expires_at <= now()
"""

_DELETED = """
SELECT id, tenant_id FROM files
WHERE deleted_at IS NOT NULL AND purged_at IS NULL AND id > %s ORDER BY id LIMIT %s
"""

_PURGED = """
WITH parts AS (DELETE FROM file_parts WHERE file_id = %(id)s)
UPDATE files SET purged_at = now(), num_parts = 0, filename = '' WHERE id = %(id)s
    AND purged_at IS NULL
"""

_FORGOTTEN = """
SELECT id, tenant_id FROM files
WHERE purged_at < now() - interval '1 hour' AND id <> ALL(%s::uuid[])
ORDER BY purged_at LIMIT %s
"""

_LOST = """
SELECT id FROM file_uploads
WHERE abandoned_at IS NULL AND started_at < now() - make_interval(secs => %s)
    AND id <> ALL(%s::uuid[])
ORDER BY started_at LIMIT %s
"""

_ABANDON = (
    "UPDATE file_uploads SET abandoned_at = now() WHERE id = ANY(%s) AND abandoned_at IS NULL"
)

_ABANDONED = """
SELECT id, tenant_id FROM file_uploads
WHERE abandoned_at IS NOT NULL AND id > %s ORDER BY id LIMIT %s
"""

Found = list[tuple[UUID, UUID]]  # (tenant, file)


def expired_files(
    connection: DictConnection, *, batch: int, aside: Sequence[UUID] = ()
) -> list[UUID]:
    """Files whose time is over, but for those set aside."""
    rows = connection.execute(_EXPIRED, (list(aside), batch)).fetchall()
    return [row["id"] for row in rows]


def expire_files(connection: DictConnection, file_ids: Sequence[UUID]) -> int:
    """Mark expired files as deleted. Returns how many."""
    return connection.execute(_EXPIRE, (list(file_ids),)).rowcount


def deleted_files(connection: DictConnection, *, after: UUID, batch: int) -> Found:
    """Deleted files whose contents are still there, by id."""
    return _found(connection, _DELETED, after, batch)


def note_purged(connection: DictConnection, file_id: UUID) -> None:
    """The contents of a deleted file are gone. Its row stays for an hour: a writer that found out
    too late, and died before it could take its part back, leaves that to a second look.
    """
    connection.execute(_PURGED, {"id": file_id})


def purged_files(connection: DictConnection, *, batch: int, aside: Sequence[UUID] = ()) -> Found:
    """Files whose contents were removed an hour ago, but for those set aside."""
    return _found(connection, _FORGOTTEN, list(aside), batch)


def forget_file(connection: DictConnection, file_id: UUID) -> None:
    """Nothing is left of it."""
    connection.execute("DELETE FROM files WHERE id = %s AND purged_at IS NOT NULL", (file_id,))


def lost_uploads(
    connection: DictConnection, *, batch: int, aside: Sequence[UUID] = ()
) -> list[UUID]:
    """Uploads whose process must be gone, but for those set aside."""
    rows = connection.execute(_LOST, (UPLOAD_TTL_S, list(aside), batch)).fetchall()
    return [row["id"] for row in rows]


def abandon_uploads(connection: DictConnection, upload_ids: Sequence[UUID]) -> int:
    """Abandon uploads. Returns how many."""
    return connection.execute(_ABANDON, (list(upload_ids),)).rowcount


def abandoned_uploads(connection: DictConnection, *, after: UUID, batch: int) -> Found:
    """Uploads that never became files, by id."""
    return _found(connection, _ABANDONED, after, batch)


def forget_upload(connection: DictConnection, upload_id: UUID) -> None:
    """The contents of an abandoned upload are gone."""
    connection.execute(
        "DELETE FROM file_uploads WHERE id = %s AND abandoned_at IS NOT NULL", (upload_id,)
    )


def _found(connection: DictConnection, query: str, *parameters: object) -> Found:
    rows = connection.execute(query.encode(), parameters).fetchall()
    return [(row["tenant_id"], row["id"]) for row in rows]
