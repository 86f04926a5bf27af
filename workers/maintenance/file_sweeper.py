"""The file sweeper: removes the contents of deleted and expired files, and what is left of uploads
that never became files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from uuid import UUID

import structlog
from psycopg import Error as DatabaseError

from store import file_retention
from store.apart import TURN_S, apart
from store.aside import Aside
from store.faults import is_units, reason
from store.file_contents import FileContents
from store.file_retention import Found
from store.pools import DictConnection
from store.settings import FileSettings
from workers.maintenance import metrics
from workers.maintenance.kinds import look_after

INTERVAL_S = 30.0
BATCH = 100

_FIRST = UUID(int=0)

log = structlog.get_logger(__name__)

Note = Callable[[DictConnection, UUID], None]


class FileSweeper:
    """One batch a step, by id, so that files which can't be removed hold up no others: they come
    again in the next round.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._aside = Aside(clock)
        self._files_after = _FIRST
        self._uploads_after = _FIRST

    @cached_property
    def _contents(self) -> FileContents:
        # At the first step, not at the start: a wrong URL must not take the other loops along.
        return FileContents(FileSettings().files_url)

    def step(self, connection: DictConnection) -> bool:
        """True if there may be more."""
        kinds = {
            "expired_files": self._expire,
            "lost_uploads": self._abandon,
            "file_contents": self._remove_contents,
            "file_rows": self._remove_rows,
            "uploads": self._remove_uploads,
        }
        nums = [look_after(kind, partial(work, connection)) for kind, work in kinds.items()]
        return BATCH in nums

    def _expire(self, connection: DictConnection) -> int:
        expired = file_retention.expired_files(connection, batch=BATCH, aside=self._aside.ids())
        self._apart(
            "expired_files", expired, lambda some: file_retention.expire_files(connection, some)
        )
        return len(expired)

    def _abandon(self, connection: DictConnection) -> int:
        lost = file_retention.lost_uploads(connection, batch=BATCH, aside=self._aside.ids())
        self._apart(
            "lost_uploads", lost, lambda some: file_retention.abandon_uploads(connection, some)
        )
        return len(lost)

    def _remove_contents(self, connection: DictConnection) -> int:
        files = file_retention.deleted_files(connection, after=self._files_after, batch=BATCH)
        last = self._remove(connection, files, "file_contents", file_retention.note_purged)
        self._files_after = last
        return len(files)

    def _remove_rows(self, connection: DictConnection) -> int:
        purged = file_retention.purged_files(connection, batch=BATCH, aside=self._aside.ids())
        self._remove(
            connection, purged, "file_rows", file_retention.forget_file, failed=self._aside.add
        )
        return len(purged)

    def _remove_uploads(self, connection: DictConnection) -> int:
        uploads = file_retention.abandoned_uploads(
            connection, after=self._uploads_after, batch=BATCH
        )
        last = self._remove(connection, uploads, "uploads", file_retention.forget_upload)
        self._uploads_after = last
        return len(uploads)

    def _remove(
        self,
        connection: DictConnection,
        found: Found,
        what: str,
        note: Note,
        *,
        failed: Callable[[UUID], object] = lambda _: None,
    ) -> UUID:
        """Behind which one the next batch begins. Those that are left after a while come next."""
        give_up_at = self._clock() + TURN_S
        for tenant_id, file_id in found:
            if self._clock() >= give_up_at:
                return file_id
            try:
                self._contents.remove(tenant_id, file_id)
            except Exception as error:  # one file's boundary: a store raises what it likes
                metrics.UNITS_FAILED.labels(what).inc()
                failed(file_id)
                log.warning("contents_not_removed", what=what, error=type(error).__name__)
                continue
            try:
                note(connection, file_id)
            except DatabaseError as error:  # one file's boundary: it comes again in the next round
                if not is_units(error):
                    raise
                metrics.UNITS_FAILED.labels(what).inc()
                failed(file_id)
                log.error("removal_not_noted", what=what, id=file_id.hex, error=reason(error))
                continue
            metrics.EXPIRED.labels(what).inc()
        return _next(found)

    def _apart(self, what: str, ids: Sequence[UUID], work: Callable[[Sequence[UUID]], int]) -> None:
        """One that can't be changed keeps no other from it."""

        def set_aside(id_: UUID, error: DatabaseError) -> None:
            metrics.UNITS_FAILED.labels(what).inc()
            num_tries = self._aside.add(id_)
            log.error("file_not_expired", id=id_.hex, tries=num_tries, error=reason(error))

        metrics.EXPIRED.labels(what).inc(sum(apart(ids, work, set_aside)))


def _next(found: Found) -> UUID:
    """Where the next batch begins: after a full one, else anew."""
    return found[-1][1] if len(found) == BATCH else _FIRST
