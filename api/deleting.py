"""Deleting a job, whatever the dialect it was asked for in."""

from __future__ import annotations

from contextlib import suppress

from redis.exceptions import RedisError

from api.job_view import is_terminal
from api.json_response import JsonResponse
from api.limits.turns import Turn
from api.resuming import not_found
from api.services import Services
from api.waiting import wait_for_end
from store.deletion import delete_job, is_of_live_batch
from store.jobs import JobRow
from store.tenants import ApiKey
from tasks.errors import InvalidRequest, ServiceUnavailable
from tasks.jobs import Dialect
from tasks.stream import drop_log

DELETE_WAIT_S = 10.0  # for the end of a job that is to be deleted while it runs


async def delete(services: Services, caller: ApiKey, row: JobRow, turn: Turn) -> None:
    """Remove what was asked and answered; the bill stays. One that runs is cancelled first; if it
    doesn't end soon it is there still, and the client may come back.

    The stream goes before the rows, so that whoever dies in between leaves a job that is not
    deleted, and never a stream that nobody would look for any more.
    """
    if row["batch_id"] is not None and await is_of_live_batch(
        services.pool, caller.tenant_id, row["id"]
    ):
        raise InvalidRequest("The job is of a batch that is not over. Cancel or delete the batch.")
    if not is_terminal(row):
        await services.canceller.cancel(caller.tenant_id, row["id"])
        row = await wait_for_end(services, caller, row["id"], DELETE_WAIT_S, turn)
        if not is_terminal(row):
            raise ServiceUnavailable("It is being cancelled. Delete it in a moment.")
    with suppress(RedisError):  # maintenance drops it too
        await drop_log(services.redis, row["id"])
    if not await delete_job(services.pool, caller.tenant_id, row["id"]):
        raise not_found(Dialect(row["dialect"]))  # somebody else was faster


def deleted(object_id: str, kind: str) -> JsonResponse:
    """What a client is told, in OpenAI's shape."""
    return JsonResponse({"id": object_id, "object": kind, "deleted": True})
