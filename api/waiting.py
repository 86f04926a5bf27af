"""Waiting for a job's end without holding anything but a place among its listeners."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar
from uuid import UUID

from starlette.requests import Request

from api.deps import find_job
from api.errors import ClientLeft
from api.job_view import is_terminal
from api.limits.turns import Turn
from api.services import Services
from api.settings import CANCEL_WAIT_S, STREAM_GRACE_S
from store.jobs import JobRow
from store.tenants import ApiKey

T = TypeVar("T")


async def wait_for_end(
    services: Services, caller: ApiKey, job_id: UUID, wait_s: float, turn: Turn
) -> JobRow:
    """The job, over or not, at the latest after `wait_s`. Raises JobNotFound.

    Keeps no turn of the tenant's while it waits, and has one otherwise: very many may come, or end,
    at the same moment.
    """
    row = await find_job(services, caller, job_id)
    if is_terminal(row):
        return row
    ends_at = asyncio.get_running_loop().time() + wait_s
    async with services.hub.watch(job_id) as channel:
        row = await find_job(services, caller, job_id)  # it may have ended before the watch
        if is_terminal(row):
            return row
        turn.give_back()
        # The time limit cuts off this wait alone: a query that is cancelled halfway makes the
        # caller wait for its connection to be put in order.
        with suppress(TimeoutError):
            async with asyncio.timeout_at(ends_at):
                await channel.over.wait()
    await turn.take(is_patient=True)  # what was paid for isn't refused now
    return await find_job(services, caller, job_id)


async def cancel_and_wait(
    services: Services, caller: ApiKey, job_id: UUID, request: Request
) -> JobRow:
    """Ask for the end of a job, and give its worker a moment for it: the job, over or not.

    Raises JobNotFound and ClientLeft.
    """
    row = await services.canceller.cancel(caller.tenant_id, job_id)
    if is_terminal(row):
        return row
    return await wait_while_there(services, caller, job_id, request, CANCEL_WAIT_S)


async def wait_with_client(
    services: Services, caller: ApiKey, job_id: UUID, request: Request
) -> JobRow:
    """The job once it is over, for a client that waits as long as it takes.

    Raises ClientLeft when the client goes first; then its disconnect policy takes its course.
    """
    row = await find_job(services, caller, job_id)
    if is_terminal(row):
        return row
    wait_s = max(0.0, row["remaining_s"]) + STREAM_GRACE_S
    try:
        return await wait_while_there(services, caller, job_id, request, wait_s)
    except ClientLeft:
        services.canceller.client_left(row)
        raise


async def wait_while_there(
    services: Services, caller: ApiKey, job_id: UUID, request: Request, wait_s: float
) -> JobRow:
    """`wait_for_end` for a client that may go first: nothing is held for one that has gone.

    Raises ClientLeft, besides.
    """
    if not wait_s:
        return await find_job(services, caller, job_id)
    return await _unless_left(
        request, wait_for_end(services, caller, job_id, wait_s, request.state.turn)
    )


async def wait_without_turn(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives, for which the tenant's other requests needn't wait.

    Raises ClientLeft when the client goes first; the work is cancelled then.
    """
    turn: Turn = request.state.turn
    turn.give_back()
    done = await _unless_left(request, work)
    await turn.take(is_patient=True)
    return done


async def _unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The same while the client is there. Raises ClientLeft."""
    end = asyncio.create_task(work)
    left = asyncio.create_task(_leaving(request))
    try:
        await asyncio.wait((end, left), return_when=asyncio.FIRST_COMPLETED)
        if end.done():
            return end.result()
        raise ClientLeft
    finally:
        for task in (end, left):
            task.cancel()
        await asyncio.gather(end, left, return_exceptions=True)


async def _leaving(request: Request) -> None:
    """Returns when the client has gone. Its body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
