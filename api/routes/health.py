"""For load balancers. Without keys; says nothing about tenants."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from fastapi import APIRouter
from psycopg import Error as DatabaseError
from redis.exceptions import RedisError
from starlette.responses import Response

from api.deps import ServicesDep
from api.errors import UNAVAILABLE
from api.json_response import JsonResponse
from store.leases import has_live_worker

router = APIRouter()

CHECK_TIMEOUT_S = 2.0


@router.get("/livez")
async def live() -> Response:
    """The process runs. Nothing else is asked: restarting it would not bring Postgres back."""
    return JsonResponse({"status": "ok"})


@router.get("/readyz", responses={UNAVAILABLE: {"description": "Not ready"}})
async def ready(services: ServicesDep) -> Response:
    """Whether a job would be admitted and run, and if not, why. Checks run side by side."""
    worker, redis = await asyncio.gather(
        _check(has_live_worker(services.core_pool)), _check(services.redis.ping())
    )
    checks = {
        "postgres": "ok" if isinstance(worker, bool) else worker,
        "redis": "ok" if isinstance(redis, bool) else redis,
        "worker": _worker(worker),
    }
    is_ready = all(answer == "ok" for answer in checks.values())
    body = {"status": "ready" if is_ready else "not_ready", "checks": checks}
    return JsonResponse(body, 200 if is_ready else UNAVAILABLE)


async def _check(question: Awaitable[bool]) -> bool | str:
    """The answer, or a word for why there is none."""
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await question
    except TimeoutError:
        return "timeout"
    except (DatabaseError, RedisError, OSError):
        return "unavailable"


def _worker(answer: bool | str) -> str:
    if isinstance(answer, str):
        return "unknown"
    return "ok" if answer else "none"
