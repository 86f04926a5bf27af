"""What a request would cost, before it runs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.deps import ServicesDep, Submitter
from api.generation import Generation
from api.job_limits import output_limit
from api.json_body import read_json_object
from api.json_response import JsonResponse
from api.openapi import gives, takes
from api.schemas.chat import CreateChatCompletion
from api.schemas.completions import CreateCompletion
from api.schemas.jobs import CreateJob
from api.schemas.reports import EstimateBody, EstimateShown
from api.submitting import parse_body
from billing.pricing import cost_micros, worst_case_micros
from store.admission import FrozenPrices
from store.catalog import ModelEntry
from store.estimates import OutputQuantiles, output_quantiles
from tasks.errors import InvalidRequest

router = APIRouter(prefix="/v1/estimate")

# The body of any of these routes may be sent; `endpoint` names its route.
_BODIES: dict[str, type[CreateJob | CreateChatCompletion | CreateCompletion]] = {
    "/v1/jobs": CreateJob,
    "/v1/chat/completions": CreateChatCompletion,
    "/v1/completions": CreateCompletion,
}


@router.post("", openapi_extra=takes(EstimateBody), responses=gives(EstimateShown))
async def create(request: Request, services: ServicesDep, caller: Submitter) -> Response:
    """Exact prompt tokens; how long answers usually are; a price for each tier. Nothing is kept."""
    generation = await read_json_object(request, _generation)
    model = (await services.registry.get(generation.model)).entry
    lengths = await services.admission.count_tokens(caller, generation)
    input_tokens, limit = sum(lengths), output_limit(generation, model, lengths)
    usual = await output_quantiles(services.pool, caller.tenant_id, model.name)
    return JsonResponse(
        {
            "object": "estimate",
            "model": model.name,
            "input_tokens": input_tokens,
            "max_output_tokens": limit * generation.num_choices,
            "output_tokens": _quantiles(usual, generation, limit),
            "currency": model.currency,
            "tiers": {
                tier: _costs(
                    model,
                    tier,
                    input_tokens=input_tokens,
                    limit=limit,
                    generation=generation,
                    usual=usual,
                )
                for tier in caller.tiers
            },
            # Predictions come with a scheduler that measures its lanes.
            "start_eta_s": None,
            "finish_eta_s": None,
        }
    )


def _generation(body: dict[str, Any]) -> Generation:
    endpoint = body.pop("endpoint", None)
    if endpoint is None:
        endpoint = "/v1/jobs"
    schema = _BODIES.get(endpoint) if isinstance(endpoint, str) else None
    if schema is None:
        message = f"'endpoint' is one of {', '.join(_BODIES)}."
        raise InvalidRequest(message, param="endpoint")
    return parse_body(schema, body).generation()


def _quantiles(
    usual: OutputQuantiles | None, generation: Generation, limit: int
) -> dict[str, Any] | None:
    if usual is None:
        return None
    lengths = {name: getattr(usual, name) for name in ("p50", "p90", "p99")}
    bounded = {name: min(n, limit) * generation.num_choices for name, n in lengths.items()}
    return {**bounded, "source": usual.source, "samples": usual.samples}


def _costs(
    model: ModelEntry,
    tier: str,
    *,
    input_tokens: int,
    limit: int,
    generation: Generation,
    usual: OutputQuantiles | None,
) -> dict[str, int | None]:
    """Of the usual answer, a long one and the longest; cached input would make it less."""
    price = model.prices[tier]
    prices = FrozenPrices(
        version=model.price_version,
        input_micros=price.input_micros,
        cached_micros=price.cached_micros,
        output_micros=price.output_micros,
        currency=model.currency,
    )
    lengths = _quantiles(usual, generation, limit)

    def cost(output_tokens: int) -> int:
        return cost_micros(
            input_tokens=input_tokens, cached_tokens=0, output_tokens=output_tokens, prices=prices
        )

    return {
        "p50_micros": cost(lengths["p50"]) if lengths else None,
        "p90_micros": cost(lengths["p90"]) if lengths else None,
        "max_micros": worst_case_micros(
            input_tokens=input_tokens,
            max_output_tokens=limit * generation.num_choices,
            prices=prices,
        ),
    }
