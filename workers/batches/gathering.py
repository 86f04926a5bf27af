"""Gathers what a step of a batch writes: lines that are over, shown, for the one file or the other.

A line that can't be read or shown is put off or becomes an error line, and keeps no other back.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import structlog
from psycopg import Error as DatabaseError

from api.prompts.registry import ModelRegistry
from store import batch_results
from store.batch_driving import WrittenLines
from store.batch_turns import BatchRow
from store.faults import is_outage
from store.pools import SyncPool
from workers.batches.showing import Line, LineShower, Shown

LINES_A_PART = 500
PART_BYTES = 4 << 20  # and a line: what a step holds in memory
LINES_APART = 50  # read one by one, where all at once can't be read
APART_S = 5.0  # after which such a step takes no more: as long as a statement may take
MAX_NOT_SHOWN = 10  # each takes time, and a statement waits meanwhile
_TOKENS = ("input_tokens", "cached_tokens", "output_tokens")

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Written:
    """Lines on their way into one of the two files."""

    filename: str
    column: str  # of the batch's row: the file's id
    lines: list[Line] = field(default_factory=list)
    file_id: UUID | None = None


@dataclass(slots=True)
class Step:
    """What one step writes, and the lines it puts off."""

    good: Written = field(default_factory=lambda: Written("output.jsonl", "output_file_id"))
    bad: Written = field(default_factory=lambda: Written("errors.jsonl", "error_file_id"))
    numbers: list[int] = field(default_factory=list)
    num_bytes: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_TOKENS, 0))
    not_shown: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: dict[str, Any], shown: Shown | None) -> None:
        """None: it can't be shown at the moment."""
        if shown is None:
            self.not_shown.append(row)
            return
        is_good, line = shown
        (self.good if is_good else self.bad).lines.append(line)
        self.numbers.append(row["number"])
        self.num_bytes += len(line) if isinstance(line, bytes) else 0
        for name in _TOKENS:  # none of them without a job
            self.tokens[name] += row[name] or 0

    @property
    def num_short_not_shown(self) -> int:
        """How many of those put off were no long ones."""
        return sum(not row["is_long"] for row in self.not_shown)

    @property
    def is_empty(self) -> bool:
        """Whether no line was as much as looked at."""
        return not (self.numbers or self.not_shown)

    def over(self) -> WrittenLines:
        """As the store notes it down."""
        return WrittenLines(
            numbers=self.numbers,
            num_completed=len(self.good.lines),
            num_failed=len(self.bad.lines),
            output_file_id=self.good.file_id,
            error_file_id=self.bad.file_id,
            **self.tokens,
        )


class LineGatherer:
    """For all batches of a driver. Thread-safe."""

    def __init__(
        self,
        pool: SyncPool,
        registry: ModelRegistry,
        *,
        part_bytes: int = PART_BYTES,
        long_bytes: int = batch_results.LONG_BYTES,
    ) -> None:
        self._pool = pool
        self._shower = LineShower(pool, registry)
        self._part_bytes = part_bytes
        self._long_bytes = long_bytes

    def gather(self, batch: BatchRow, spools: ExitStack, *, skips_long: bool = False) -> Step:
        """What a part holds. A long line has a step of its own. `skips_long`: short ones alone.
        `spools` closes what is on disk. Raises outages.
        """
        step = Step()
        try:
            long = self._read(step, batch, spools, skips_long)
            if long is not None and not step.numbers:
                self._show(step, batch, long, spools)
        except (DatabaseError, MemoryError) as error:
            if is_outage(error):
                raise
            log.warning("batch_lines_not_read", batch_id=batch["id"].hex, error=repr(error))
            if step.is_empty:
                self._read_apart(step, batch, spools)
        return step

    def _read(
        self, step: Step, batch: BatchRow, spools: ExitStack, skips_long: bool
    ) -> dict[str, Any] | None:
        """Short lines, up to a long one, which is returned: no connection is held while it is read,
        each piece takes one for itself.
        """
        with self._pool.connection() as connection:
            rows = batch_results.lines_to_write(
                connection,
                batch["id"],
                limit=LINES_A_PART,
                long_bytes=self._long_bytes,
                skips_long=skips_long,
            )
            with closing(rows):
                for row in rows:
                    if row["is_long"]:
                        return row
                    self._show(step, batch, row, spools)
                    if self._is_full(step):
                        break
        return None

    def _read_apart(self, step: Step, batch: BatchRow, spools: ExitStack) -> None:
        """One by one, up to one that can't be read: a row is broken, or too much for Postgres."""
        with self._pool.connection() as connection:
            heads = batch_results.heads_to_write(connection, batch["id"], limit=LINES_APART)
        give_up_at = time.monotonic() + APART_S
        for head in heads:
            if self._is_full(step) or time.monotonic() > give_up_at:
                return
            try:
                row = self._read_one(batch, head["number"])
            except (DatabaseError, MemoryError) as error:
                if is_outage(error):
                    raise
                step.add(head, self._shower.not_shown(batch, head, error))
                return
            if row is not None and not (row["is_long"] and step.numbers):
                self._show(step, batch, row, spools)
            if row is not None and row["is_long"]:
                return

    def _read_one(self, batch: BatchRow, number: int) -> dict[str, Any] | None:
        with self._pool.connection() as connection:
            rows = batch_results.lines_to_write(
                connection, batch["id"], limit=1, long_bytes=self._long_bytes, number=number
            )
            with closing(rows):
                return next(rows, None)

    def _is_full(self, step: Step) -> bool:
        return step.num_bytes >= self._part_bytes or len(step.not_shown) >= MAX_NOT_SHOWN

    def _show(self, step: Step, batch: BatchRow, row: dict[str, Any], spools: ExitStack) -> None:
        step.add(row, self._shower.show(batch, row, spools))
