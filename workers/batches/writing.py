"""Writes what came of lines: one output or error line each, in the transaction that ends them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import structlog
from psycopg import Error as DatabaseError

from api.prompts.registry import ModelRegistry
from store import batch_driving
from store.batch_turns import BatchRow
from store.file_contents import FileContents, PartWriter
from store.file_output import append_part, begin_output, open_output, take_output
from store.file_retention import abandon_uploads
from store.pools import DictConnection, SyncPool
from workers.batches.gathering import LineGatherer, Step, Written
from workers.batches.rests import line_pause_s
from workers.batches.showing import Line

COPY_BYTES = 1 << 20

log = structlog.get_logger(__name__)


class LineWriter:
    """For all batches of a driver. Thread-safe."""

    def __init__(
        self,
        pool: SyncPool,
        contents: FileContents,
        registry: ModelRegistry,
        **limits: int,
    ) -> None:
        """`limits` of what a step takes: see LineGatherer."""
        self._pool = pool
        self._contents = contents
        self._gatherer = LineGatherer(pool, registry, **limits)

    def write(self, batch: BatchRow) -> int:
        """Results of lines that are over: how many were written, and how many short ones put off,
        behind which there may be more. Blocks. Raises LineWriterFenced.
        """
        with ExitStack() as spools:
            step = self._gather(batch, spools)
            num_put_off = step.num_short_not_shown
            if len(step.not_shown) > num_put_off:  # a long one, which short ones don't wait for
                step = self._gather(batch, spools, skips_long=True)
                num_put_off += step.num_short_not_shown
            if step.numbers:
                self._commit(batch, step)
        return len(step.numbers) + num_put_off

    def _gather(self, batch: BatchRow, spools: ExitStack, *, skips_long: bool = False) -> Step:
        step = self._gatherer.gather(batch, spools, skips_long=skips_long)
        self._put_off(batch, step.not_shown)
        return step

    def _put_off(self, batch: BatchRow, rows: Sequence[dict[str, Any]]) -> None:
        """They hold up no line behind them."""
        if not rows:
            return
        with self._pool.connection() as connection, connection.transaction():
            if not batch_driving.is_owned(connection, batch):
                raise LineWriterFenced
            for row in rows:
                pause_s = line_pause_s(row["num_tries"])
                batch_driving.postpone_result(
                    connection, batch["id"], row["number"], pause_s=pause_s
                )

    def _commit(self, batch: BatchRow, step: Step) -> None:
        written = [each for each in (step.good, step.bad) if each.lines]
        self._begin(batch, written)
        try:
            self._write(batch, step, written)
        except BaseException:
            self._abandon(batch, written)
            raise

    def _write(self, batch: BatchRow, step: Step, written: Sequence[Written]) -> None:
        with (
            self._pool.connection() as connection,
            connection.transaction(),
            ExitStack() as undo,
        ):
            if not batch_driving.is_owned(connection, batch):
                raise LineWriterFenced
            for each in written:
                self._append(connection, batch, each, undo)
            if not batch_driving.note_over(connection, batch, step.over()):
                raise LineWriterFenced  # rolls all of it back
            undo.pop_all()  # from here on the commit decides, even if nobody learns how it went

    def _begin(self, batch: BatchRow, written: Sequence[Written]) -> None:
        """Files that are new are known before their first byte."""
        for each in written:
            each.file_id = batch[each.column]
            if each.file_id is None:
                with self._pool.connection() as connection:
                    each.file_id = begin_output(connection, batch["tenant_id"])

    def _abandon(self, batch: BatchRow, written: Sequence[Written]) -> None:
        """Files that came to nothing count as nobody's any more. One whose commit got through after
        all is no upload, and isn't touched.
        """
        ids = [each.file_id for each in written if each.file_id and batch[each.column] is None]
        try:
            with self._pool.connection() as connection:
                abandon_uploads(connection, ids)
        except DatabaseError as error:  # the sweeper finds them later
            log.warning("output_not_abandoned", error=type(error).__name__)

    def _append(
        self, connection: DictConnection, batch: BatchRow, written: Written, undo: ExitStack
    ) -> None:
        tenant_id, file_id = batch["tenant_id"], written.file_id
        assert file_id is not None
        if batch[written.column] is None:
            if not take_output(connection, tenant_id, file_id):
                raise LineWriterFenced  # so slow that it was taken for dead
            open_output(connection, tenant_id, filename=written.filename, file_id=file_id)
        writer = self._contents.new_part(tenant_id, file_id)
        undo.callback(_leave_nothing, writer)
        for data in _contents(written.lines):
            writer.write(data)
        part = writer.finish()
        if not append_part(connection, tenant_id, file_id, part):
            self._contents.remove_part(part)  # its owner deleted the file


class LineWriterFenced(Exception):
    """Another driver has the batch, or this one took so long that its new file was taken for a dead
    driver's: what it wrote is in no file.
    """


def _leave_nothing(writer: PartWriter) -> None:
    """Of a part that no commit will name: a full disk would be no emptier after a hundred tries."""
    try:
        writer.abort()
    except Exception as error:  # why the part isn't wanted counts more
        log.warning("part_not_removed", error=type(error).__name__)


def _contents(lines: Sequence[Line]) -> Iterator[bytes]:
    yield b"".join(line for line in lines if isinstance(line, bytes))
    for line in lines:
        if not isinstance(line, bytes):
            line.seek(0)
            while data := line.read(COPY_BYTES):
                yield data
