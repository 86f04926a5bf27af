"""Drives batches: one step of each a turn, and any step may be repeated by another driver."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import orjson
import structlog
from psycopg import Error as DatabaseError

from api.admission import Admission, Submission
from api.schemas.strict import known_fields
from store import batch_driving
from store.file_contents import FileContents
from store.jobs import request_cancel
from store.pools import AsyncPool, SyncPool
from store.tenants import ApiKey, find_api_key
from tasks.errors import InsufficientQuota, InvalidApiKey, ServiceError
from tasks.jobs import OnDisconnect
from workers.batches.endpoints import ENDPOINTS
from workers.batches.reading import FileReader, LeaseLost
from workers.batches.writing import LineWriter, LineWriterFenced, ended_error, request_error

log = structlog.get_logger(__name__)

TURN_S = 0.5
WINDOW = 256  # lines of a batch that are jobs at a time: the rest wait here, not in the queues
CANCELS_A_TURN = 500
READINGS = 2  # files read at a time
MIN_DEADLINE_S = 1.0


class Driver:
    """One a process, on one event loop; what blocks runs in threads."""

    def __init__(
        self,
        *,
        pool: SyncPool,
        api_pool: AsyncPool,
        admission: Admission,
        contents: FileContents,
    ) -> None:
        """`pool` is of the worker's role; `api_pool` of the API's, to admit lines as requests."""
        self.id = uuid4()
        self._pool = pool
        self._api_pool = api_pool
        self._admission = admission
        self._contents = contents
        self._waiting: set[UUID] = set()  # batches that nothing could be submitted of
        self._readings: dict[UUID, asyncio.Task[None]] = {}
        self._writer = LineWriter(pool, contents, admission.registry)

    async def run(self) -> None:
        """For ever. A failure waits for the next turn."""
        while True:
            is_busy = False
            try:
                for batch in await self._call(batch_driving.lease, self.id):
                    is_busy |= await self._step(batch)
            except DatabaseError as error:
                log.warning("batches_not_driven", error=type(error).__name__)
            await asyncio.sleep(0 if is_busy else TURN_S)

    async def _step(self, batch: dict[str, Any]) -> bool:
        """Whether there may be more to do at once. One batch's fault holds up no other."""
        if batch["id"] in self._readings:  # whatever came meanwhile, a cancel even
            return False
        with _alone(batch):
            if batch["status"] != "validating":
                return await self._go_on(batch)
            self._start_reading(batch)
        return False

    def _start_reading(self, batch: dict[str, Any]) -> None:
        """Beside the steps of the others: a large file takes a minute."""
        if len(self._readings) == READINGS:
            return
        reading = asyncio.create_task(self._read(batch))
        self._readings[batch["id"]] = reading
        reading.add_done_callback(lambda _: self._readings.pop(batch["id"]))

    async def _read(self, batch: dict[str, Any]) -> None:
        try:
            with _alone(batch):
                await self._read_file(batch)
        except DatabaseError as error:
            log.warning("batch_not_read", error=type(error).__name__)

    async def _read_file(self, batch: dict[str, Any]) -> None:
        reader = FileReader(self._pool, self._contents, batch)
        num_lines, mistakes = await asyncio.to_thread(reader.read)
        if mistakes:
            await self._call(batch_driving.fail, batch["id"], self.id, mistakes)
            log.info("batch_failed", batch_id=batch["id"].hex, num_mistakes=len(mistakes))
            return
        await self._call(batch_driving.begin, batch["id"], self.id, num_lines=num_lines)

    async def _go_on(self, batch: dict[str, Any]) -> bool:
        is_ending = batch["status"] == "cancelling" or batch["is_late"]
        if is_ending:
            await self._end_lines(batch)
        num_written = await asyncio.to_thread(self._writer.write, batch)
        counts = await self._call(batch_driving.counts, batch["id"])
        num_submitted = 0
        if not is_ending and counts.get("pending"):
            num_submitted = await self._submit(batch, WINDOW - counts.get("submitted", 0))
        if not counts:
            await self._call(batch_driving.end, batch["id"], self.id, _last_status(batch))
            self._waiting.discard(batch["id"])
            log.info("batch_ended", batch_id=batch["id"].hex, status=_last_status(batch))
        return bool(num_written or num_submitted)

    async def _end_lines(self, batch: dict[str, Any]) -> None:
        """What has no job gets none; jobs are cancelled, and billed for what they produced."""
        code = "batch_expired" if batch["is_late"] else "batch_cancelled"
        await self._call(batch_driving.refuse_pending, batch["id"], ended_error(code))
        running = await self._call(batch_driving.running_jobs, batch["id"], limit=CANCELS_A_TURN)
        for job_id in running:
            await request_cancel(self._api_pool, batch["tenant_id"], job_id, by="user")

    async def _submit(self, batch: dict[str, Any], room: int) -> int:
        if room <= 0:
            return 0
        lines = await self._call(batch_driving.pending_lines, batch["id"], limit=room)
        key = await find_api_key(self._api_pool, batch["api_key_id"])
        num_submitted = 0
        for line in lines:
            try:
                job_id = await self._admit(batch, key, line)
            except ServiceError as error:
                if error.retryable or isinstance(error, InsufficientQuota):
                    self._note_waiting(batch, error)
                    break
                await self._call(
                    batch_driving.note_refused, batch["id"], line["number"], request_error(error)
                )
                continue
            await self._call(batch_driving.note_submitted, batch["id"], line["number"], job_id)
            num_submitted += 1
            self._waiting.discard(batch["id"])
        return num_submitted

    def _note_waiting(self, batch: dict[str, Any], error: ServiceError) -> None:
        """Once, not each turn: without credit a batch may wait for a day."""
        if batch["id"] not in self._waiting:
            self._waiting.add(batch["id"])
            log.warning("batch_waits", batch_id=batch["id"].hex, code=error.code)

    async def _admit(self, batch: dict[str, Any], key: ApiKey | None, line: dict[str, Any]) -> UUID:
        """The job of a line, made now or by a driver that died before it could say so."""
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
                body=body,
                known=known_fields(endpoint.schema, body),
                idempotency_key=batch_driving.line_key(batch["id"], line["number"]),
                batch_id=batch["id"],
            )
        )
        return admitted.job_id

    async def _call(self, function: Any, *arguments: Any, **named: Any) -> Any:
        """A function of the store, on a thread and a connection of its own."""

        def call() -> Any:
            with self._pool.connection() as connection:
                return function(connection, *arguments, **named)

        return await asyncio.to_thread(call)


@contextmanager
def _alone(batch: dict[str, Any]) -> Iterator[None]:
    """Keeps a batch's fault from the others; Postgres's are everybody's."""
    try:
        yield
    except (LeaseLost, LineWriterFenced):
        log.warning("batch_lost", batch_id=batch["id"].hex)
    except DatabaseError:
        raise
    except Exception:
        log.exception("batch_step_failed", batch_id=batch["id"].hex)


def _last_status(batch: dict[str, Any]) -> str:
    if batch["status"] == "cancelling":
        return "cancelled"
    return "expired" if batch["is_late"] else "completed"
