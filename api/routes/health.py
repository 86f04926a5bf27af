"""For load balancers. Without keys; says nothing about tenants."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from fastapi import APIRouter
from psycopg import Error as DatabaseError
from redis.exceptions import RedisError
from starlette.responses import Response

from api.deps import ServicesDep
from api.errors import UNAVAILABLE
from api.json_response import JsonResponse
from store.leases import live_workers, refusals_of

router = APIRouter()
T = TypeVar("T")

CHECK_TIMEOUT_S = 2.0


@router.get("/livez")
async def live() -> Response:
    """The process runs. Nothing else is asked: restarting it would not bring Postgres back."""
    return JsonResponse({"status": "ok"})


@router.get("/readyz", responses={UNAVAILABLE: {"description": "Not ready"}})
async def ready(services: ServicesDep) -> Response:
    """Whether a job would be admitted and run, and if not, why. Checks run side by side.

    `refused` names models that no worker can serve; the others' jobs run.
    """
    workers, redis = await asyncio.gather(
        _check(live_workers(services.core_pool)), _check(services.redis.ping())
    )
    checks = {
        "postgres": workers if isinstance(workers, str) else "ok",
        "redis": redis if isinstance(redis, str) else "ok",
        "worker": _worker(workers),
    }
    is_ready = all(answer == "ok" for answer in checks.values())
    body: dict[str, Any] = {"status": "ready" if is_ready else "not_ready", "checks": checks}
    if not isinstance(workers, str) and (refused := refusals_of(workers)):
        body["refused"] = refused
    return JsonResponse(body, 200 if is_ready else UNAVAILABLE)


async def _check(question: Awaitable[T]) -> T | str:
    """The answer, or a word for why there is none."""
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await question
    except TimeoutError:
        return "timeout"
    except (DatabaseError, RedisError, OSError):
        return "unavailable"


def _worker(workers: list[dict[str, Any]] | str) -> str:
    if isinstance(workers, str):
        return "unknown"
    if any(worker["models"] for worker in workers):
        return "ok"
    return "without models" if workers else "none"
