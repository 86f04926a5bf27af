"""Waiting for a job's end without holding anything but a place among its listeners."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from uuid import UUID

from starlette.requests import Request

from api.deps import find_job
from api.errors import ClientLeft
from api.job_view import is_terminal
from api.limits.turns import give_back_turn
from api.services import Services
from api.settings import STREAM_GRACE_S
from store.jobs import JobRow
from store.tenants import ApiKey


async def wait_for_end(services: Services, caller: ApiKey, job_id: UUID, wait_s: float) -> JobRow:
    """The job, over or not, at the latest after `wait_s`. Raises JobNotFound."""
    row = await find_job(services, caller, job_id)
    if not wait_s or is_terminal(row):
        return row
    ends_at = asyncio.get_running_loop().time() + wait_s
    async with services.hub.watch(job_id) as channel:
        row = await find_job(services, caller, job_id)  # it may have ended before the watch
        if is_terminal(row):
            return row
        # The time limit cuts off this wait alone: a query that is cancelled halfway makes the
        # caller wait for its connection to be put in order.
        with suppress(TimeoutError):
            async with asyncio.timeout_at(ends_at):
                await channel.over.wait()
    return await find_job(services, caller, job_id)


async def wait_with_client(
    services: Services, caller: ApiKey, job_id: UUID, request: Request
) -> JobRow:
    """The job once it is over, for a client that waits as long as it takes.

    Raises ClientLeft when the client goes first; then its disconnect policy takes its course.
    """
    row = await find_job(services, caller, job_id)
    if is_terminal(row):
        return row
    give_back_turn(request.scope["state"])
    wait_s = max(0.0, row["remaining_s"]) + STREAM_GRACE_S
    end = asyncio.create_task(wait_for_end(services, caller, job_id, wait_s))
    left = asyncio.create_task(_leaving(request))
    try:
        await asyncio.wait((end, left), return_when=asyncio.FIRST_COMPLETED)
        if end.done():
            return end.result()
        services.canceller.client_left(row)
        raise ClientLeft
    finally:
        for task in (end, left):
            task.cancel()
        await asyncio.gather(end, left, return_exceptions=True)


async def _leaving(request: Request) -> None:
    """Returns when the client has gone. Its body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
