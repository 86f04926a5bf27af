"""Reads a batch's file, a slice a step and with constant memory, into the table of its lines."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import orjson

from api.json_body import parse_json_object
from store import batch_driving
from store.batch_driving import ReadLines
from store.batch_turns import BatchRow
from store.file_contents import FileContents
from store.file_lines import LineTooLong, lines_of, read_block
from store.file_output import parts_of
from store.files import ReadPart
from store.pools import SyncPool
from tasks.errors import InvalidRequest

MAX_LINES = 50_000
MAX_LINE_BYTES = 1 << 20
MAX_CUSTOM_ID = 64
MAX_LISTED_ERRORS = 100
# A step reads one slice: a fraction of a second, and longer than a line.
SLICE_BYTES = 2 << 20
SLICE_LINES = 2_000
# Lines whose bodies begin alike run beside each other, so that they share the prefix cache.
PREFIX_BYTES = 64

Line = dict[str, Any]
Mistake = dict[str, Any]


class LeaseLost(Exception):
    """Another driver has the batch."""


class FileReader:
    """One step of reading one batch's file."""

    def __init__(
        self,
        pool: SyncPool,
        contents: FileContents,
        batch: BatchRow,
        *,
        slice_bytes: int = SLICE_BYTES,
        slice_lines: int = SLICE_LINES,
    ) -> None:
        self._pool = pool
        self._contents = contents
        self._batch = batch
        self._slice_bytes = slice_bytes
        self._slice_lines = slice_lines
        self._mistakes: list[Mistake] = list(batch["errors"])
        self._is_last = False  # nothing of the file is read after this slice

    def step(self) -> None:
        """Read the next slice; after the last one begin the batch, or fail it. Blocks.

        Raises LeaseLost.
        """
        with self._pool.connection() as connection:
            parts = parts_of(connection, self._batch["tenant_id"], self._batch["input_file_id"])
            begins_anew = not self._batch["read_bytes"]
            if begins_anew and batch_driving.forget_lines(connection, self._batch["id"]):
                return
        if not parts:
            self._note("file_not_found", "The input file is not there any more.", None)
            self._end(0)
            return
        num_added = self._batch["num_total"]
        if self._batch["read_bytes"] < sum(part.num_bytes for part in parts):
            num_added += self._store(self._read(parts))
        else:
            self._is_last = True
        if self._is_last:
            self._end(num_added)

    def _read(self, parts: Sequence[ReadPart]) -> ReadLines:
        """The next lines. Where no more are wanted, it ends where the file does."""
        total = sum(part.num_bytes for part in parts)
        begin, number = self._batch["read_bytes"], self._batch["read_lines"]
        block = self._block(parts, begin)
        is_last_block = begin + len(block) >= total
        lines: list[Line] = []
        end = 0
        try:
            for text, end in lines_of(block, is_last=is_last_block, max_bytes=MAX_LINE_BYTES):  # noqa: B007
                number += 1
                self._take(lines, number, text)
                if self._is_last or len(lines) == self._slice_lines:
                    break
        except LineTooLong:
            message = f"A line has more than {MAX_LINE_BYTES} bytes."
            self._note("line_too_long", message, number + 1)
            self._is_last = True
        self._is_last |= begin + end >= total
        return ReadLines(lines, total if self._is_last else begin + end, number)

    def _block(self, parts: Sequence[ReadPart], begin: int) -> bytes:
        while begin >= parts[0].num_bytes:
            begin -= parts[0].num_bytes
            parts = parts[1:]
        reader = self._contents.open([part.object_key for part in parts], skip=begin)
        try:
            return read_block(reader, max_bytes=self._slice_bytes)
        finally:
            reader.close()

    def _take(self, lines: list[Line], number: int, text: bytes) -> None:
        if number > MAX_LINES:
            self._note("too_many_lines", f"The input file has more than {MAX_LINES} lines.", number)
            self._is_last = True
        elif text.strip() and (line := self._line(number, text)) is not None:
            lines.append(line)

    def _line(self, number: int, text: bytes) -> Line | None:
        """None for a line that fails the batch."""
        try:
            document = parse_json_object(text)
        except InvalidRequest as error:
            self._note("invalid_json_line", error.message, number)
            return None
        if mistake := self._mistake(document):
            self._note(*mistake[:2], number, param=mistake[2])
            return None
        body = document["body"]
        prefix = orjson.dumps({n: v for n, v in body.items() if n in _PREFIX_FIELDS})
        return {
            "number": number,
            "custom_id": document["custom_id"],
            "body": orjson.dumps(body),
            "prefix": prefix[:PREFIX_BYTES] + hashlib.sha256(prefix[:1024]).digest()[:8],
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

    def _store(self, read: ReadLines) -> int:
        """How many lines were added. Their place in the file is noted by the same transaction."""
        with self._pool.connection() as connection, connection.transaction():
            if not batch_driving.is_owned(connection, self._batch):
                raise LeaseLost
            added = batch_driving.add_lines(connection, self._batch["id"], read.lines)
            for line in read.lines:
                if line["number"] not in added:
                    message = "The 'custom_id' stands on an earlier line too."
                    self._note("duplicate_custom_id", message, line["number"], param="custom_id")
            batch_driving.advance(
                connection, self._batch, read, num_added=len(added), mistakes=self._mistakes
            )
        return len(added)

    def _end(self, num_lines: int) -> None:
        """A batch that fails keeps no lines: its last steps forget them."""
        if not num_lines and not self._mistakes:
            self._note("empty_file", "The input file has no lines.", None)
        with self._pool.connection() as connection:
            if not self._mistakes:
                batch_driving.begin(connection, self._batch)
            elif not batch_driving.forget_lines(connection, self._batch["id"]):
                batch_driving.fail(connection, self._batch, self._mistakes)

    def _note(self, code: str, message: str, line: int | None, *, param: str | None = None) -> None:
        if len(self._mistakes) < MAX_LISTED_ERRORS:
            self._mistakes.append({"code": code, "message": message, "line": line, "param": param})
        self._is_last |= len(self._mistakes) == MAX_LISTED_ERRORS


_PREFIX_FIELDS = ("model", "messages", "prompt", "instructions", "input")
"""What a line's prompt may be in."""
