"""Shows what came of a line: as its request would have been answered, or why it wasn't."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
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
from store import batch_results
from store.batch_turns import BatchRow
from store.faults import is_outage, is_passing, is_units
from store.pools import SyncPool
from tasks.errors import InternalError, JobCancelled, ServiceError
from tasks.ids import format_job_id
from workers.batches.endpoints import ENDPOINTS
from workers.batches.rests import is_last_write

OK = 200

log = structlog.get_logger(__name__)

# A long one is on disk: its log-probabilities may take more than the worker has.
Line = bytes | IO[bytes]
Shown = tuple[bool, Line]  # whether it is of the output file, and the line


class LineShower:
    """For all batches of a driver. Thread-safe."""

    def __init__(self, pool: SyncPool, registry: ModelRegistry) -> None:
        self._pool = pool
        self._registry = registry

    def show(self, batch: BatchRow, row: dict[str, Any], spools: ExitStack) -> Shown | None:
        """A line that is over. Raises outages; see `not_shown`. `spools` closes what is on disk."""
        try:
            is_good, content = self._content(batch, row)
            return is_good, self._line(row, pieces_of(_line_ids(batch, row) | content), spools)
        except Exception as error:
            if is_outage(error):
                raise
            return self.not_shown(batch, row, error)

    def not_shown(self, batch: BatchRow, row: dict[str, Any], error: Exception) -> Shown | None:
        """A result that can't be shown is an error, whatever is wrong with it: the other lines go
        on. None: not at the moment; it has been paid for, so it is to be tried again.
        """
        is_final = is_lines_own(error) or is_last_write(row)
        log.error(
            "batch_line_not_shown",
            batch_id=batch["id"].hex,
            line=row["number"],
            is_final=is_final,
            exc_info=error,
        )
        if not is_final:
            return None
        line = _line_ids(batch, row) | request_error(InternalError(), row["id"])
        return False, orjson.dumps(line) + b"\n"

    def _line(self, row: dict[str, Any], pieces: Sequence[Piece], spools: ExitStack) -> Line:
        match pieces:
            case [bytes() as whole]:
                return whole + b"\n"
        with ExitStack() as own:  # what was written in vain leaves its room to the other lines
            spool = own.enter_context(TemporaryFile())
            for piece in pieces:
                spool.writelines(
                    self._list(row, piece) if isinstance(piece, LaterList) else (piece,)
                )
            spool.write(b"\n")
            spool.flush()
            spools.push(own.pop_all())
        return spool

    def _list(self, row: dict[str, Any], later: LaterList) -> Iterator[bytes]:
        json = ListJson()
        for part in later.parts:
            entries = part.entries()
            rows = batch_results.read_logprobs(
                self._pool, row["tenant_id"], row["id"], part.choice, of_prompt=part.is_prompt
            )
            for token_ids, values in rows:
                yield json.add(entries(orjson.loads(token_ids), orjson.loads(values)))
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


def _line_ids(batch: BatchRow, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"batch_req_{batch['id'].hex}{row['number']:06x}",
        "custom_id": row["custom_id"],
    }


def is_lines_own(error: Exception) -> bool:
    """Whether it is the result's own fault. A full disk, too little memory, here or in Postgres, a
    lock that wasn't got or a schema that isn't migrated yet are not.
    """
    if isinstance(error, DatabaseError):
        return is_units(error) and not is_passing(error)
    return not isinstance(error, OSError | MemoryError)


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
