"""Drives batches: one step at a time of one batch, tenants in turn. Any step may be repeated."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import structlog
from psycopg import Error as DatabaseError

from api.admission import Admission
from store import batch_driving, batch_turns
from store.aside import Aside
from store.batch_turns import BatchRow, Rest
from store.faults import is_outage
from store.file_contents import FileContents
from store.jobs import request_cancel
from store.pools import AsyncPool, SyncPool
from tasks.errors import InternalError
from workers.batches.reading import FileReader, LeaseLost
from workers.batches.rests import MAX_TRIES, TURN_S, after_failure, rest_of, same_again
from workers.batches.showing import ended_error
from workers.batches.submitting import MAX_PUT_OFF, LineSubmitter
from workers.batches.writing import LineWriter, LineWriterFenced

log = structlog.get_logger(__name__)

NUM_STEPPERS = 3  # steps at a time
CLEARING_TRIES = 3  # failed ones to cancel and to forget what is left of one that is given up
CANCELS_A_STEP = 100
RENEW_S = batch_turns.LEASE_S / 3
MAX_RENEWALS = 60  # five minutes: a step that hangs is another driver's then


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
        self._pool = pool
        self._api_pool = api_pool
        self._contents = contents
        self._writer = LineWriter(pool, contents, admission.registry)
        self._submitter = LineSubmitter(pool, api_pool, admission)
        self._round: deque[UUID] = deque()  # a batch of each tenant
        self._next_round = asyncio.Lock()
        self._aside = Aside()  # batches that can't be leased
        self._unreleased: list[tuple[BatchRow, Rest]] = []  # since Postgres was away

    async def run(self) -> None:
        """For ever."""
        await asyncio.gather(*(self._serve() for _ in range(NUM_STEPPERS)))

    async def _serve(self) -> None:
        while True:
            try:
                is_busy = await self.step()
            except Exception as error:  # the loop's boundary: whatever it was, others go on
                if not is_outage(error):
                    log.exception("batch_turn_failed")
                else:
                    log.warning("batches_not_driven", error=type(error).__name__)
                is_busy = False
            if not is_busy:
                await asyncio.sleep(TURN_S)

    async def step(self) -> bool:
        """One step of the batch whose turn it is. False: none is due."""
        batch_id = await self._next()
        if batch_id is None:
            return False
        batch = await self._lease(batch_id)
        if batch is not None:
            await self._step(batch)
        return True

    async def _lease(self, batch_id: UUID) -> BatchRow | None:
        try:
            leased: BatchRow | None = await self._call(batch_turns.lease, batch_id)
        except DatabaseError as error:
            if is_outage(error):
                raise
            log.exception("batch_not_leased", batch_id=batch_id.hex)
            self._aside.add(batch_id)  # else it is the first of its tenant's in every round
            return None
        return leased

    async def _next(self) -> UUID | None:
        async with self._next_round:
            if not self._round:
                await self._release_left()
                self._round.extend(await self._call(batch_turns.due, aside=self._aside.ids()))
            return self._round.popleft() if self._round else None

    async def _step(self, batch: BatchRow) -> None:
        """A batch's fault is noted down and holds up no other; an outage is nobody's."""
        try:
            async with self._renewed(batch):
                rest = await self._advance(batch)
        except (LeaseLost, LineWriterFenced):
            log.warning("batch_lost", batch_id=batch["id"].hex)
            return
        except Exception as error:
            if is_outage(error):
                self._unreleased.append((batch, same_again(batch)))
                raise
            log.exception("batch_step_failed", batch_id=batch["id"].hex)
            rest = after_failure(batch, error)
        await self._release(batch, rest)

    @asynccontextmanager
    async def _renewed(self, batch: BatchRow) -> AsyncIterator[None]:
        """Keep its lease while a step takes long, such as one with a long line or a slow disk."""
        renewing = asyncio.create_task(self._renew(batch))
        try:
            yield
        finally:
            renewing.cancel()

    async def _renew(self, batch: BatchRow) -> None:
        for _ in range(MAX_RENEWALS):
            await asyncio.sleep(RENEW_S)
            try:
                await self._call(batch_turns.renew, batch)
            except DatabaseError as error:  # the step meets it too
                log.warning("batch_not_renewed", error=type(error).__name__)

    async def _release(self, batch: BatchRow, rest: Rest) -> None:
        try:
            await self._call(batch_turns.release, batch, rest)
        except DatabaseError as error:
            if is_outage(error):
                self._unreleased.append((batch, rest))
                raise
            # It is due again once its lease is over, and the step counts as a failed try.
            log.exception("batch_not_released", batch_id=batch["id"].hex)

    async def _release_left(self) -> None:
        while self._unreleased:
            await self._release(*self._unreleased.pop())

    async def _advance(self, batch: BatchRow) -> Rest:
        """The next step, and when there is another."""
        if batch["num_tries"] >= MAX_TRIES:
            return await self._give_up(batch)
        if batch["is_unfinished"]:
            await self._call(batch_driving.take_over, batch)
        if batch["status"] == "validating":
            reader = FileReader(self._pool, self._contents, batch)
            await asyncio.to_thread(reader.step)
            return Rest(pause_s=0)
        return await self._go_on(batch)

    async def _go_on(self, batch: BatchRow) -> Rest:
        is_ending = batch["status"] == "cancelling" or batch["is_late"]
        num_done, waits_for = 0, None
        if is_ending:
            num_done += await self._end_lines(batch)
        num_done += await asyncio.to_thread(self._writer.write, batch)
        left = await self._call(batch_driving.left, batch["id"])
        if left.is_nothing:
            await self._end(batch)
            return Rest(pause_s=0)
        if left.has_pending and not is_ending:
            num_running = left.num_submitted - min(left.num_put_off, MAX_PUT_OFF)
            num_submitted, waits_for = await self._submitter.submit(batch, num_running)
            num_done += num_submitted
        return rest_of(batch, is_busy=num_done > 0, waits_for=waits_for)

    async def _end_lines(self, batch: BatchRow) -> int:
        """What has no job gets none; jobs are cancelled, and billed for what they produced."""
        code = "batch_expired" if batch["is_late"] else "batch_cancelled"
        num_refused: int = await self._call(
            batch_driving.refuse_pending, batch["id"], ended_error(code)
        )
        return num_refused + await self._cancel_jobs(batch)

    async def _cancel_jobs(self, batch: BatchRow) -> int:
        """How many. One that can't be cancelled keeps no other from it; raises if none can."""
        running = await self._call(batch_driving.running_jobs, batch["id"], limit=CANCELS_A_STEP)
        failures: list[Exception] = []
        for job_id in running:
            try:
                await request_cancel(self._api_pool, batch["tenant_id"], job_id, by="user")
            except Exception as error:
                if is_outage(error):
                    raise
                log.exception("batch_job_not_cancelled", job_id=job_id.hex)
                failures.append(error)
        if failures and len(failures) == len(running):
            raise failures[-1]
        return len(running) - len(failures)

    async def _end(self, batch: BatchRow) -> None:
        """Its lines are forgotten first, some a step: a batch that is over has no more steps."""
        if await self._call(batch_driving.forget_lines, batch["id"]):
            return
        await self._call(batch_driving.end, batch, _last_status(batch))
        log.info("batch_ended", batch_id=batch["id"].hex, status=_last_status(batch))

    async def _give_up(self, batch: BatchRow) -> Rest:
        """It failed too often. What stands in its files stays; what runs is cancelled."""
        if await self._clear(batch):
            return same_again(batch)
        error = InternalError("The batch failed again and again by no fault that has a name.")
        mistake = {"code": error.code, "message": error.message, "line": None, "param": None}
        await self._call(batch_driving.fail, batch, [mistake])
        log.error("batch_given_up", batch_id=batch["id"].hex)
        return Rest(pause_s=0)

    async def _clear(self, batch: BatchRow) -> bool:
        """Cancel jobs and forget lines; whether there are more. If that keeps failing too, the
        batch ends all the same: jobs that couldn't be cancelled end by themselves, at its window's
        end at the latest, and lines go with its row.
        """
        try:
            if await self._cancel_jobs(batch):
                return True
            return bool(await self._call(batch_driving.forget_lines, batch["id"]))
        except Exception as error:
            if is_outage(error) or batch["num_tries"] < MAX_TRIES + CLEARING_TRIES:
                raise
            log.exception("batch_not_cleared", batch_id=batch["id"].hex)
            return False

    async def _call(self, function: Any, *arguments: Any, **named: Any) -> Any:
        """A function of the store, on a thread and a connection of its own."""

        def call() -> Any:
            with self._pool.connection() as connection:
                return function(connection, *arguments, **named)

        return await asyncio.to_thread(call)


def _last_status(batch: BatchRow) -> str:
    if batch["status"] == "cancelling":
        return "cancelled"
    return "expired" if batch["is_late"] else "completed"
