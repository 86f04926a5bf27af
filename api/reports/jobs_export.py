"""Settled jobs one by one: as JSON objects, and a whole period as CSV.

The CSV is sent while it is read: one page of rows is in memory, and no connection to Postgres is
held in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

import structlog
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from api.files.slots import TransferSlots
from api.reports.csv_lines import csv_headers, csv_lines
from api.settings import SEND_TIMEOUT_S
from tasks.ids import format_job_id, uuid7_unix_ms

PAGE = 1_000  # rows: some 200 KB, made in some 5 ms

JOB_COLUMNS = (
    *("id", "created_at", "finished_at", "model", "service_tier", "status", "payer"),
    *("input_tokens", "cached_tokens", "output_tokens", "amount_micros", "currency"),
    *("end_user", "api_key_id"),
)

Row = Mapping[str, Any]
# Reads so many rows behind a row of the list, or from its beginning.
ReadPage = Callable[[Row | None, int], Awaitable[Sequence[Row]]]

log = structlog.get_logger(__name__)


def job_usage(row: Mapping[str, Any]) -> dict[str, Any]:
    """One settled job."""
    shown = {
        "id": format_job_id(row["job_id"]),
        "object": "usage.job",
        "created_at": uuid7_unix_ms(row["job_id"]) // 1_000,
        "finished_at": int(row["created_at"].timestamp()),
    }
    return shown | {name: row[name] for name in JOB_COLUMNS if name not in shown}


class JobsExport(StreamingResponse):
    """Ends early when the client leaves or stops reading. A fault of ours cuts the connection, so
    that no client takes a part for the whole.
    """

    def __init__(self, slots: TransferSlots, tenant_id: UUID, chunks: AsyncIterator[bytes]) -> None:
        self._slots = slots
        self._tenant_id = tenant_id
        super().__init__(chunks, headers=csv_headers("jobs"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send(message)

        try:
            with self._slots.take(self._tenant_id):
                await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            log.warning("export_stalled")


async def export_jobs(slots: TransferSlots, tenant_id: UUID, read: ReadPage) -> JobsExport:
    """The first rows are read before the answer begins, so that a fault then has a status."""
    return JobsExport(slots, tenant_id, _chunks(await read(None, PAGE), read))


async def _chunks(rows: Sequence[Row], read: ReadPage) -> AsyncIterator[bytes]:
    yield csv_lines(JOB_COLUMNS, map(job_usage, rows))
    while len(rows) == PAGE:
        rows = await read(rows[-1], PAGE)
        yield csv_lines(JOB_COLUMNS, map(job_usage, rows), has_head=False)
