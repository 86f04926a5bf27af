"""Writes what came of lines: one output or error line each, in the transaction that ends them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson

from api.dialects.answers import failure_of
from api.dialects.fold import ShownJob
from api.errors import error_object, status_of
from api.prompts.registry import ModelRegistry
from store import batch_driving
from store.file_contents import FileContents, StoredPart
from store.file_output import append_part, open_output
from store.pools import DictConnection, SyncPool
from tasks.errors import ServiceError
from tasks.ids import format_job_id
from tasks.jobs import JobStatus
from workers.batches.endpoints import ENDPOINTS

LINES_A_PART = 500
OK = 200


@dataclass(slots=True)
class _Written:
    """Lines on their way into one of the two files."""

    filename: str
    lines: list[bytes] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    file_id: UUID | None = None
    part: StoredPart | None = None


class LineWriter:
    """For all batches of a driver. Thread-safe."""

    def __init__(self, pool: SyncPool, contents: FileContents, registry: ModelRegistry) -> None:
        self._pool = pool
        self._contents = contents
        self._registry = registry

    def write(self, batch: dict[str, Any]) -> int:
        """Results of lines that are over; how many. Blocks."""
        with self._pool.connection() as connection:
            rows = batch_driving.lines_to_write(connection, batch["id"], limit=LINES_A_PART)
        if not rows:
            return 0
        good, bad = _Written("output.jsonl"), _Written("errors.jsonl")
        for row in rows:
            is_good, line = self._line(batch, row)
            written = good if is_good else bad
            written.lines.append(orjson.dumps(line) + b"\n")
            written.numbers.append(row["number"])
        self._commit(batch, good, bad)
        return len(rows)

    def _commit(self, batch: dict[str, Any], good: _Written, bad: _Written) -> None:
        with self._pool.connection() as connection, connection.transaction():
            for written, column in ((good, "output_file_id"), (bad, "error_file_id")):
                if written.lines:
                    self._append(connection, batch, written, column)
            is_ours = batch_driving.note_over(
                connection,
                batch["id"],
                batch["owner"],
                numbers=[*good.numbers, *bad.numbers],
                num_completed=len(good.numbers),
                num_failed=len(bad.numbers),
                output_file_id=good.file_id,
                error_file_id=bad.file_id,
            )
            if not is_ours:
                raise LineWriterFenced  # rolls all of it back
        batch["output_file_id"] = batch["output_file_id"] or good.file_id
        batch["error_file_id"] = batch["error_file_id"] or bad.file_id

    def _append(
        self, connection: DictConnection, batch: dict[str, Any], written: _Written, column: str
    ) -> None:
        tenant_id = batch["tenant_id"]
        file_id = batch[column] or open_output(
            connection, tenant_id, filename=written.filename, ttl_s=batch["output_ttl_s"]
        )
        writer = self._contents.new_part(tenant_id, file_id)
        writer.write(b"".join(written.lines))
        written.file_id, written.part = file_id, writer.finish()
        if not append_part(connection, tenant_id, file_id, written.part):
            self._contents.remove_part(written.part)  # its owner deleted the file

    def _line(self, batch: dict[str, Any], row: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
        line = {
            "id": f"batch_req_{batch['id'].hex}{row['number']:06x}",
            "custom_id": row["custom_id"],
        }
        if row["error"] is not None:
            return False, line | row["error"]
        if (failure := failure_of(row)) is not None or row["status"] == JobStatus.CANCELLED:
            if batch["is_late"] or failure is None:
                code = "batch_expired" if batch["is_late"] else "batch_cancelled"
                return False, line | ended_error(code)
            return False, line | request_error(failure, row["id"])
        model = self._registry.find(row["model"])
        vocabulary = model.codec.vocabulary if model else None
        job = ShownJob(row, row["request"] or {}, vocabulary)
        body = ENDPOINTS[batch["endpoint"]].show(job)
        request_id = format_job_id(row["id"])
        response = {"status_code": OK, "request_id": request_id, "body": body}
        return True, line | {"response": response, "error": None}


class LineWriterFenced(Exception):
    """Another driver has the batch; what this one wrote is in no file."""


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
