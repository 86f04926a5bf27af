"""Models and their prices."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from api.deps import Caller, ServicesDep
from api.job_view import unix_time
from api.json_response import JsonResponse
from api.openapi import gives
from api.prompts.registry import ServedModel
from api.schemas.objects import ModelList, ModelShown

router = APIRouter(prefix="/v1/models")


@router.get("", responses=gives(ModelList))
async def list_(services: ServicesDep, caller: Caller) -> Response:
    """All models that take jobs."""
    data = [_model_object(model) for model in services.registry.list()]
    return JsonResponse({"object": "list", "data": data})


@router.get("/{model:path}", responses=gives(ModelShown))
async def get(services: ServicesDep, caller: Caller, model: str) -> Response:
    """One model. Names may hold slashes."""
    served = await services.registry.get(model)
    return JsonResponse(_model_object(served))


def _model_object(served: ServedModel) -> dict[str, Any]:
    model = served.entry
    tools = {"tools"} if served.codec.tool_format else set()
    return {
        "id": model.name,
        "object": "model",
        "created": unix_time(model.created_at),
        "owned_by": "millrace",
        "status": "active" if model.refusal is None else "unavailable",
        "status_reason": model.refusal,
        "context_length": model.context_length,
        "max_output_tokens": model.max_output_tokens,
        "capabilities": sorted(model.capabilities | tools),
        "pricing": {
            "currency": model.currency,
            "unit": "micros per million tokens",
            "version": model.price_version,
            "tiers": {
                tier: {
                    "input_micros": price.input_micros,
                    "cached_micros": price.cached_micros,
                    "output_micros": price.output_micros,
                }
                for tier, price in sorted(model.prices.items())
            },
        },
    }
