"""Files as a worker reads and writes them: input files whole, output files part by part.

The caller's transaction decides: a part belongs to the file exactly when it commits, together with
whatever else that transaction says about the lines in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from store.file_contents import StoredPart
from store.files import Purpose, ReadPart
from store.pools import DictConnection
from tasks.ids import uuid7

_BEGIN = "INSERT INTO file_uploads (id, tenant_id, reserved_bytes) VALUES (%s, %s, 1)"
_TAKE = "DELETE FROM file_uploads WHERE id = %s AND tenant_id = %s AND abandoned_at IS NULL"

_OPEN = """
INSERT INTO files (id, tenant_id, purpose, filename, num_bytes, num_parts, status, expires_at)
VALUES (%(id)s, %(tenant_id)s, %(purpose)s, %(filename)s, 0, 0, 'processed',
    now() + make_interval(secs => %(ttl_s)s))
"""

_APPEND = """
WITH file AS (
    UPDATE files SET num_bytes = num_bytes + %(num_bytes)s, num_parts = num_parts + 1
    WHERE id = %(id)s AND tenant_id = %(tenant_id)s AND deleted_at IS NULL
    RETURNING num_parts
)
INSERT INTO file_parts (file_id, number, tenant_id, object_key, num_bytes)
SELECT %(id)s, num_parts, %(tenant_id)s, %(object_key)s, %(num_bytes)s FROM file
"""

_PARTS = """
SELECT p.object_key, p.num_bytes FROM file_parts p JOIN files f ON f.id = p.file_id
WHERE f.id = %s AND f.tenant_id = %s AND f.purged_at IS NULL ORDER BY p.number
"""


# Its owner has an hour to read what was written last, however long the batch took.
_LIMIT = """
UPDATE files SET expires_at = greatest(created_at + make_interval(secs => %(ttl_s)s),
    now() + interval '1 hour')
WHERE id = ANY(%(ids)s) AND tenant_id = %(tenant_id)s AND deleted_at IS NULL
"""


def begin_output(connection: DictConnection, tenant_id: UUID) -> UUID:
    """The id of an output file to be. Commit it before the first byte is stored: it is an upload
    until `take_output`, so that whatever a crash leaves of it is found.
    """
    file_id = uuid7()
    connection.execute(_BEGIN, (file_id, tenant_id))
    return file_id


def take_output(connection: DictConnection, tenant_id: UUID, file_id: UUID) -> bool:
    """It is no upload any more: open it. False if it was taken for lost meanwhile."""
    return connection.execute(_TAKE, (file_id, tenant_id)).rowcount == 1


def open_output(
    connection: DictConnection,
    tenant_id: UUID,
    *,
    filename: str,
    ttl_s: int | None = None,
    file_id: UUID | None = None,
) -> UUID:
    """A new empty output file. Without `ttl_s` it doesn't expire while it is written."""
    parameters = {
        "id": file_id or uuid7(),
        "tenant_id": tenant_id,
        "purpose": Purpose.BATCH_OUTPUT,
        "filename": filename,
        "ttl_s": ttl_s,
    }
    connection.execute(_OPEN, parameters)
    return UUID(str(parameters["id"]))


def append_part(
    connection: DictConnection, tenant_id: UUID, file_id: UUID, part: StoredPart
) -> bool:
    """Add a stored part. False if the file is deleted: then remove the part's object."""
    parameters = {
        "id": file_id,
        "tenant_id": tenant_id,
        "object_key": part.object_key,
        "num_bytes": part.num_bytes,
    }
    return connection.execute(_APPEND, parameters).rowcount == 1


def limit_outputs(
    connection: DictConnection, tenant_id: UUID, file_ids: Sequence[UUID | None], *, ttl_s: int
) -> None:
    """Nothing more is written to them: they expire so long after they were made. None is none."""
    parameters = {"ids": list(file_ids), "tenant_id": tenant_id, "ttl_s": ttl_s}
    connection.execute(_LIMIT, parameters)


def parts_of(connection: DictConnection, tenant_id: UUID, file_id: UUID) -> Sequence[ReadPart]:
    """What a file consists of, as long as its contents are there, deleted or not."""
    rows = connection.execute(_PARTS, (file_id, tenant_id)).fetchall()
    return [ReadPart(**row) for row in rows]
