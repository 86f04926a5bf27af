"""The file sweeper: removes the contents of deleted and expired files, and what is left of uploads
that never became files.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from uuid import UUID

import structlog

from store import file_retention
from store.file_contents import FileContents
from store.file_retention import Found
from store.pools import DictConnection
from store.settings import FileSettings
from workers.maintenance import metrics

INTERVAL_S = 30.0
BATCH = 100

_FIRST = UUID(int=0)

log = structlog.get_logger(__name__)

Note = Callable[[DictConnection, UUID], None]


class FileSweeper:
    """One batch a step, by id, so that files which can't be removed hold up no others: they come
    again in the next round.
    """

    def __init__(self) -> None:
        self._files_after = _FIRST
        self._purged_after = _FIRST
        self._uploads_after = _FIRST

    @cached_property
    def _contents(self) -> FileContents:
        # At the first step, not at the start: a wrong URL must not take the other loops along.
        return FileContents(FileSettings().files_url)

    def step(self, connection: DictConnection) -> bool:
        """True if there may be more."""
        num_expired = file_retention.expire_files(connection, batch=BATCH)
        file_retention.abandon_uploads(connection)
        files = file_retention.deleted_files(connection, after=self._files_after, batch=BATCH)
        self._remove(connection, files, "file_contents", file_retention.note_purged)
        purged = file_retention.purged_files(connection, after=self._purged_after, batch=BATCH)
        self._remove(connection, purged, "file_rows", file_retention.forget_file)
        uploads = file_retention.abandoned_uploads(
            connection, after=self._uploads_after, batch=BATCH
        )
        self._remove(connection, uploads, "uploads", file_retention.forget_upload)
        self._files_after = _next(files)
        self._purged_after = _next(purged)
        self._uploads_after = _next(uploads)
        return BATCH in (num_expired, len(files), len(purged), len(uploads))

    def _remove(self, connection: DictConnection, found: Found, what: str, note: Note) -> None:
        for tenant_id, file_id in found:
            try:
                self._contents.remove(tenant_id, file_id)
            except Exception as error:  # one file's boundary: a store raises what it likes
                metrics.UNITS_FAILED.labels(what).inc()
                log.warning("contents_not_removed", what=what, error=type(error).__name__)
                continue
            note(connection, file_id)
            metrics.EXPIRED.labels(what).inc()


def _next(found: Found) -> UUID:
    """Where the next batch begins: after a full one, else anew."""
    return found[-1][1] if len(found) == BATCH else _FIRST
