"""For load balancers and load tools. Without keys; says nothing about tenants.

`/livez` and `/readyz` are ours. The others are what tools for vLLM, llama.cpp and their like ask.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.deps import ServicesDep
from api.errors import UNAVAILABLE
from api.json_response import JsonResponse
from api.readiness import Workers
from store.leases import refusals_of

router = APIRouter()


@router.get("/livez")
async def live() -> Response:
    """The process runs. Nothing else is asked: restarting it would not bring Postgres back."""
    return JsonResponse({"status": "ok"})


@router.get("/readyz", responses={UNAVAILABLE: {"description": "Not ready"}})
async def ready(services: ServicesDep) -> Response:
    """Whether a job would be admitted and run, and if not, why.

    `refused` names models that no worker can serve; the others' jobs run.
    """
    workers, redis = await services.look_at_stores()
    checks = _checks(workers, redis)
    is_ready = all(answer == "ok" for answer in checks.values())
    body: dict[str, Any] = {"status": "ready" if is_ready else "not_ready", "checks": checks}
    if not isinstance(workers, str) and (refused := refusals_of(workers)):
        body["refused"] = refused
    return JsonResponse(body, 200 if is_ready else UNAVAILABLE)


@router.get("/health", responses={UNAVAILABLE: {"description": "Not ready"}})
async def health(services: ServicesDep) -> Response:
    """Whether a job would be admitted and run, in the words of other servers: a load tool begins,
    and a gateway sends requests, on 200.
    """
    checks = _checks(*await services.look_at_stores())
    if all(answer == "ok" for answer in checks.values()):
        return JsonResponse({"status": "ok"})
    return JsonResponse({"status": "not_ready", "checks": checks}, UNAVAILABLE)


@router.get("/ping")
async def ping() -> Response:
    """As `/livez`."""
    return JsonResponse({"status": "ok"})


@router.get("/version")
async def version(request: Request) -> Response:
    """Of this server."""
    return JsonResponse({"version": request.app.version})


def _checks(workers: Workers, redis: object) -> dict[str, str]:
    return {
        "postgres": workers if isinstance(workers, str) else "ok",
        "redis": redis if isinstance(redis, str) else "ok",
        "worker": _worker(workers),
    }


def _worker(workers: Workers) -> str:
    if isinstance(workers, str):
        return "unknown"
    if any(worker["models"] for worker in workers):
        return "ok"
    return "without models" if workers else "none"
