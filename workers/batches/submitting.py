"""Makes jobs of the lines of a batch, each the way a request goes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any
from uuid import UUID

import orjson
import structlog

from api.admission import Admission, Submission, request_hash
from api.schemas.strict import known_fields
from store import batch_driving
from store.admission import LineNotPending
from store.batch_turns import BatchRow
from store.faults import is_outage
from store.pools import AsyncPool, SyncPool
from store.tenants import ApiKey, find_api_key
from tasks.errors import InsufficientQuota, InternalError, InvalidApiKey, ServiceError
from tasks.jobs import OnDisconnect
from workers.batches.endpoints import ENDPOINTS
from workers.batches.rests import MAX_LINE_TRIES, line_pause_s
from workers.batches.showing import request_error

log = structlog.get_logger(__name__)

WINDOW = 256  # lines of a batch that are jobs at a time: the rest wait here, not in the queues
MAX_PUT_OFF = 4 * WINDOW  # over, but not to be written at the moment: so many take no place of it
# What one step takes at most, so that other tenants' turns come soon.
STEP_LINES = 64
STEP_BYTES = 4 << 20
STEP_S = 0.5
MIN_DEADLINE_S = 1.0

WaitsFor = dict[str, Any]


class LineSubmitter:
    """For all batches of a driver."""

    def __init__(self, pool: SyncPool, api_pool: AsyncPool, admission: Admission) -> None:
        self._pool = pool
        self._api_pool = api_pool
        self._admission = admission

    async def submit(self, batch: BatchRow, num_running: int) -> tuple[int, WaitsFor | None]:
        """As many lines as a step takes: (how many got on, what holds the others up)."""
        room = min(WINDOW - num_running, STEP_LINES)
        if room <= 0:
            return 0, None
        if batch["num_pauses"] and batch["waits_for"]:
            room = 1  # one tells whether it still waits
        lines = await self._call(
            batch_driving.pending_lines, batch["id"], limit=room, max_bytes=STEP_BYTES
        )
        if not lines:  # all that are left were put off
            return 0, batch["waits_for"]
        key = await find_api_key(self._api_pool, batch["api_key_id"])
        num_done, waits_for, give_up = 0, None, time.monotonic() + STEP_S
        for line in lines:
            try:
                await self._submit_line(batch, key, line)
                num_done += 1
            except InsufficientQuota as error:
                return num_done, _waits_for(batch, error)
            except ServiceError as error:
                waits_for = _waits_for(batch, error)
            if time.monotonic() > give_up:
                break
        return num_done, waits_for

    async def _submit_line(self, batch: BatchRow, key: ApiKey | None, line: dict[str, Any]) -> None:
        """A job, or a refusal. Raises ServiceError for what may pass, and outages."""
        try:
            await self._admit(batch, key, line)
        except LineNotPending:  # a cancel or another driver was faster
            return
        except InsufficientQuota:
            raise
        except ServiceError as error:
            if not error.retryable:
                await self._refuse(batch, line, error)
                return
            await self._put_off(batch, line, error)
            raise
        except Exception as error:
            if is_outage(error):
                raise
            log.exception("batch_line_failed", batch_id=batch["id"].hex, line=line["number"])
            await self._put_off(batch, line, InternalError())

    async def _put_off(self, batch: BatchRow, line: dict[str, Any], error: ServiceError) -> None:
        """Ever longer, and in the end for good."""
        if line["num_tries"] + 1 >= MAX_LINE_TRIES:
            await self._refuse(batch, line, error)
            return
        pause_s = line_pause_s(line["num_tries"])
        await self._call(batch_driving.postpone_line, batch["id"], line["number"], pause_s=pause_s)

    async def _refuse(self, batch: BatchRow, line: dict[str, Any], error: ServiceError) -> None:
        await self._call(
            batch_driving.note_refused, batch["id"], line["number"], request_error(error)
        )

    async def _admit(self, batch: BatchRow, key: ApiKey | None, line: dict[str, Any]) -> None:
        """The statement that makes the job notes down that the line has it."""
        if key is None or not key.is_live:
            raise InvalidApiKey("The API key of the batch is not valid any more.")
        body = orjson.loads(line["body"])
        endpoint = ENDPOINTS[batch["endpoint"]]
        generation = endpoint.generation(body)
        admitted = await self._admission.submit(
            Submission(
                key=key,
                generation=replace(
                    generation,
                    service_tier=batch["service_tier"],
                    deadline_s=max(MIN_DEADLINE_S, batch["remaining_s"]),
                    is_background=False,
                    on_disconnect=OnDisconnect.CONTINUE,
                ),
                request_hash=request_hash(generation.path, key.tenant_id, body),
                known=known_fields(endpoint.schema, body),
                idempotency_key=batch_driving.line_key(batch["id"], line["number"]),
                batch_id=batch["id"],
            )
        )
        if not admitted.is_new:  # made by a driver of the release before
            await self._note_submitted(batch, line, admitted.job_id)

    async def _note_submitted(self, batch: BatchRow, line: dict[str, Any], job_id: UUID) -> None:
        await self._call(batch_driving.note_submitted, batch["id"], line["number"], job_id)

    async def _call(self, function: Any, *arguments: Any, **named: Any) -> Any:
        def call() -> Any:
            with self._pool.connection() as connection:
                return function(connection, *arguments, **named)

        return await asyncio.to_thread(call)


def _waits_for(batch: BatchRow, error: ServiceError) -> WaitsFor:
    """Logged when it is new, not each turn: without credit a batch may wait for a day."""
    waits_for = {"code": error.code, "message": error.message}
    if batch["waits_for"] != waits_for:
        log.warning("batch_waits", batch_id=batch["id"].hex, code=error.code)
    return waits_for
