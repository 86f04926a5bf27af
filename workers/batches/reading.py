"""Reads a batch's file line by line, with constant memory, into the table of its lines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import orjson

from api.json_body import parse_json_object
from store import batch_driving
from store.file_contents import FileContents
from store.file_lines import LineTooLong, read_lines
from store.file_output import parts_of
from store.pools import SyncPool
from tasks.errors import InvalidRequest

MAX_LINES = 50_000
MAX_LINE_BYTES = 1 << 20
MAX_CUSTOM_ID = 64
MAX_LISTED_ERRORS = 100
CHUNK_LINES = 500
# Lines whose bodies begin alike run beside each other, so that they share the prefix cache.
PREFIX_BYTES = 64

Line = dict[str, Any]
Mistake = dict[str, Any]


class LeaseLost(Exception):
    """Another driver has the batch."""


class FileReader:
    """One batch's file."""

    def __init__(self, pool: SyncPool, contents: FileContents, batch: dict[str, Any]) -> None:
        self._pool = pool
        self._contents = contents
        self._batch = batch
        self._id: UUID = batch["id"]
        self._mistakes: list[Mistake] = []
        self._num_lines = 0

    def read(self) -> tuple[int, list[Mistake]]:
        """(Lines, mistakes that fail the batch). Blocks for as long as the file takes.

        Begins anew whatever an earlier driver did. Raises LeaseLost.
        """
        with self._pool.connection() as connection:
            batch_driving.forget_lines(connection, self._id)
            parts = parts_of(connection, self._batch["tenant_id"], self._batch["input_file_id"])
        if not parts:
            self._note("file_not_found", "The input file is not there any more.", None)
            return 0, self._mistakes
        reader = self._contents.open([part.object_key for part in parts])
        try:
            self._read(read_lines(reader, max_bytes=MAX_LINE_BYTES))
        except LineTooLong as error:
            message = f"A line has more than {MAX_LINE_BYTES} bytes."
            self._note("line_too_long", message, error.number)
        finally:
            reader.close()
        if not self._num_lines and not self._mistakes:
            self._note("empty_file", "The input file has no lines.", None)
        return self._num_lines, self._mistakes

    def _read(self, lines: Iterator[bytes]) -> None:
        chunk: list[Line] = []
        for number, text in enumerate(lines, start=1):
            if not text.strip():
                continue
            if number > MAX_LINES:
                message = f"The input file has more than {MAX_LINES} lines."
                self._note("too_many_lines", message, number)
                return
            if (line := self._line(number, text)) is not None:
                chunk.append(line)
            if len(chunk) == CHUNK_LINES:
                self._store(chunk)
                chunk = []
        self._store(chunk)

    def _line(self, number: int, text: bytes) -> Line | None:
        """None for a line that fails the batch, or after one that did: then nothing is stored."""
        try:
            document = parse_json_object(text)
        except InvalidRequest as error:
            self._note("invalid_json_line", error.message, number)
            return None
        if mistake := self._mistake(document):
            self._note(*mistake[:2], number, param=mistake[2])
            return None
        body = orjson.dumps(document["body"])
        prefix = orjson.dumps({n: v for n, v in document["body"].items() if n in _PREFIX_FIELDS})
        return {
            "number": number,
            "custom_id": document["custom_id"],
            "body": body,
            "prefix": prefix[:PREFIX_BYTES] + hashlib.sha256(prefix[:1024]).digest()[:8],
            "error": None,
        }

    def _mistake(self, line: dict[str, Any]) -> tuple[str, str, str] | None:
        custom_id = line.get("custom_id")
        if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_CUSTOM_ID:
            message = f"'custom_id' must be a text of 1 to {MAX_CUSTOM_ID} characters."
            return "invalid_custom_id", message, "custom_id"
        if line.get("method", "POST") != "POST":
            return "invalid_method", "'method' must be POST.", "method"
        if line.get("url") != self._batch["endpoint"]:
            return "mismatched_url", "'url' must be the endpoint of the batch.", "url"
        if not isinstance(line.get("body"), dict):
            return "invalid_body", "'body' must be an object.", "body"
        return None

    def _store(self, chunk: list[Line]) -> None:
        """A batch that fails keeps no lines, but its file is read to the end for its mistakes."""
        if not chunk:
            return
        with self._pool.connection() as connection, connection.transaction():
            if not batch_driving.renew(connection, self._id, self._batch["owner"]):
                raise LeaseLost
            added = batch_driving.add_lines(connection, self._id, chunk)
        self._num_lines += len(added)
        for line in chunk:
            if line["number"] not in added:
                message = "The 'custom_id' stands on an earlier line too."
                self._note("duplicate_custom_id", message, line["number"], param="custom_id")

    def _note(self, code: str, message: str, line: int | None, *, param: str | None = None) -> None:
        if len(self._mistakes) < MAX_LISTED_ERRORS:
            self._mistakes.append({"code": code, "message": message, "line": line, "param": param})


_PREFIX_FIELDS = ("model", "messages", "prompt", "instructions", "input")
