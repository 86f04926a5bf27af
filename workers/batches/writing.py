"""Writes what came of lines: one output or error line each, in the transaction that ends them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import IO, Any
from uuid import UUID

import orjson
import structlog
from psycopg import Error as DatabaseError

from api.dialects.answers import failure_of
from api.dialects.fold import ShownJob
from api.errors import error_object, status_of
from api.json_pieces import LaterList, ListJson, Piece, pieces_of
from api.prompts.registry import ModelRegistry
from store import batch_driving, batch_results
from store.batch_driving import WrittenLines
from store.batch_turns import BatchRow
from store.faults import is_outage, is_passing, is_units
from store.file_contents import FileContents, PartWriter
from store.file_output import append_part, begin_output, open_output, take_output
from store.file_retention import abandon_uploads
from store.pools import DictConnection, SyncPool
from tasks.errors import InternalError, JobCancelled, ServiceError
from tasks.ids import format_job_id
from workers.batches.endpoints import ENDPOINTS
from workers.batches.rests import is_last_try

LINES_A_PART = 500
PART_BYTES = 4 << 20  # and a line: what a step holds in memory
OK = 200
COPY_BYTES = 1 << 20
_TOKENS = ("input_tokens", "cached_tokens", "output_tokens")

log = structlog.get_logger(__name__)


# A long one is on disk: its log-probabilities may take more than the worker has.
Line = bytes | IO[bytes]


@dataclass(slots=True)
class _Written:
    """Lines on their way into one of the two files."""

    filename: str
    column: str  # of the batch's row: the file's id
    lines: list[Line] = field(default_factory=list)
    file_id: UUID | None = None


@dataclass(slots=True)
class _Step:
    """What one step writes."""

    good: _Written = field(default_factory=lambda: _Written("output.jsonl", "output_file_id"))
    bad: _Written = field(default_factory=lambda: _Written("errors.jsonl", "error_file_id"))
    numbers: list[int] = field(default_factory=list)
    num_bytes: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_TOKENS, 0))

    def add(self, row: dict[str, Any], line: Line, *, is_good: bool) -> None:
        (self.good if is_good else self.bad).lines.append(line)
        self.numbers.append(row["number"])
        self.num_bytes += len(line) if isinstance(line, bytes) else 0
        for name in _TOKENS:  # none of them without a job
            self.tokens[name] += row[name] or 0

    def over(self) -> WrittenLines:
        return WrittenLines(
            numbers=self.numbers,
            num_completed=len(self.good.lines),
            num_failed=len(self.bad.lines),
            output_file_id=self.good.file_id,
            error_file_id=self.bad.file_id,
            **self.tokens,
        )


class LineWriter:
    """For all batches of a driver. Thread-safe."""

    def __init__(
        self,
        pool: SyncPool,
        contents: FileContents,
        registry: ModelRegistry,
        *,
        part_bytes: int = PART_BYTES,
        long_bytes: int = batch_results.LONG_BYTES,
    ) -> None:
        self._pool = pool
        self._contents = contents
        self._registry = registry
        self._part_bytes = part_bytes
        self._long_bytes = long_bytes

    def write(self, batch: BatchRow) -> int:
        """Results of lines that are over; how many. Blocks. Raises LineWriterFenced."""
        with ExitStack() as spools:
            step = self._gather(batch, spools)
            if step.numbers:
                self._commit(batch, step)
        return len(step.numbers)

    def _gather(self, batch: BatchRow, spools: ExitStack) -> _Step:
        """What a part holds. A long line has a step of its own, and no connection while it is read:
        each piece takes one for itself.
        """
        step, long = _Step(), None
        with self._pool.connection() as connection:
            rows = batch_results.lines_to_write(
                connection, batch["id"], limit=LINES_A_PART, long_bytes=self._long_bytes
            )
            with closing(rows):
                for row in rows:
                    if row["is_long"]:
                        long = row
                        break
                    self._add(step, batch, row, spools)
                    if step.num_bytes >= self._part_bytes:
                        break
        if long is not None and not step.numbers:
            self._add(step, batch, long, spools)
        return step

    def _add(self, step: _Step, batch: BatchRow, row: dict[str, Any], spools: ExitStack) -> None:
        is_good, line = self._line(batch, row, spools)
        step.add(row, line, is_good=is_good)

    def _commit(self, batch: BatchRow, step: _Step) -> None:
        written = [each for each in (step.good, step.bad) if each.lines]
        self._begin(batch, written)
        try:
            self._write(batch, step, written)
        except BaseException:
            self._abandon(batch, written)
            raise

    def _write(self, batch: BatchRow, step: _Step, written: Sequence[_Written]) -> None:
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

    def _begin(self, batch: BatchRow, written: Sequence[_Written]) -> None:
        """Files that are new are known before their first byte."""
        for each in written:
            each.file_id = batch[each.column]
            if each.file_id is None:
                with self._pool.connection() as connection:
                    each.file_id = begin_output(connection, batch["tenant_id"])

    def _abandon(self, batch: BatchRow, written: Sequence[_Written]) -> None:
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
        self, connection: DictConnection, batch: BatchRow, written: _Written, undo: ExitStack
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

    def _line(self, batch: BatchRow, row: dict[str, Any], spools: ExitStack) -> tuple[bool, Line]:
        """(Whether it is of the output file, the line). A result that can't be shown is an error,
        whatever is wrong with it: the other lines go on. Raises outages, and LineNotShown.
        """
        line = {
            "id": f"batch_req_{batch['id'].hex}{row['number']:06x}",
            "custom_id": row["custom_id"],
        }
        try:
            is_good, content = self._content(batch, row)
            return is_good, self._written(row, pieces_of(line | content), spools)
        except Exception as error:
            if is_outage(error):
                raise
            if not (is_lines_own(error) or is_last_try(batch)):
                raise LineNotShown from error
            log.exception("batch_line_not_shown", batch_id=batch["id"].hex, line=row["number"])
            return False, orjson.dumps(line | request_error(InternalError(), row["id"])) + b"\n"

    def _written(self, row: dict[str, Any], pieces: Sequence[Piece], spools: ExitStack) -> Line:
        match pieces:
            case [bytes() as whole]:
                return whole + b"\n"
        spool = spools.enter_context(TemporaryFile())  # noqa: SIM115 (the stack closes it)
        for piece in pieces:
            spool.writelines(self._list(row, piece) if isinstance(piece, LaterList) else (piece,))
        spool.write(b"\n")
        return spool

    def _list(self, row: dict[str, Any], later: LaterList) -> Iterator[bytes]:
        json = ListJson(later)
        parts = batch_results.read_logprobs(self._pool, row["tenant_id"], row["id"], later.choice)
        for token_ids, values in parts:
            yield json.add(orjson.loads(token_ids), orjson.loads(values))
        yield json.end()

    def _content(self, batch: BatchRow, row: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
        if row["error"] is not None:
            return False, row["error"]
        if (failure := failure_of(row)) is not None:
            return False, _failed_line(batch, failure, row["id"])
        model = self._registry.find(row["model"])
        vocabulary = model.codec.vocabulary if model else None
        job = ShownJob(row, row["request"] or {}, vocabulary)
        body = ENDPOINTS[batch["endpoint"]].show(job)
        response = {"status_code": OK, "request_id": format_job_id(row["id"]), "body": body}
        return True, {"response": response, "error": None}


class LineWriterFenced(Exception):
    """Another driver has the batch; what this one wrote is in no file."""


class LineNotShown(Exception):
    """A result couldn't be shown at the moment. The step failed, and counts as a try."""


def is_lines_own(error: Exception) -> bool:
    """Whether it is the result's own fault. A full disk, too little memory, a lock that wasn't got
    or a schema that isn't migrated yet are not: the line, which has been paid for, is shown later.
    """
    if isinstance(error, DatabaseError):
        return is_units(error) and not is_passing(error)
    return not isinstance(error, OSError | MemoryError)


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


def _failed_line(batch: BatchRow, failure: ServiceError, job_id: UUID) -> dict[str, Any]:
    if batch["is_late"]:
        return ended_error("batch_expired")
    if batch["status"] == "cancelling" and isinstance(failure, JobCancelled):
        return ended_error("batch_cancelled")
    return request_error(failure, job_id)


def request_error(error: ServiceError, job_id: UUID | None = None) -> dict[str, Any]:
    """What the error line of a line says that was answered with an error."""
    response = {
        "status_code": status_of(error)[0],
        "request_id": format_job_id(job_id) if job_id else None,
        "body": {"error": error_object(error)},
    }
    return {"response": response, "error": None}


def ended_error(code: str) -> dict[str, Any]:
    """What the error line of a line says that the end of its batch overtook."""
    message = {
        "batch_expired": "The batch expired before this line was done.",
        "batch_cancelled": "The batch was cancelled before this line was done.",
    }[code]
    return {"response": None, "error": {"code": code, "message": message}}
