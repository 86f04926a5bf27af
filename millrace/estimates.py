"""What a job would cost and when it would end, before it is submitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from millrace.types import Json


@dataclass(frozen=True)
class OutputEstimate:
    """How long outputs of this model were: quantiles of `samples` jobs of `source`."""

    p50: int
    p90: int
    p99: int
    source: str | None = None
    samples: int | None = None


@dataclass(frozen=True)
class CostEstimate:
    """In micros: of the usual answer, of a long one, and what can't be exceeded."""

    p50_micros: int | None = None
    p90_micros: int | None = None
    max_micros: int | None = None


@dataclass(frozen=True)
class Estimate:
    """Of one job. `cost` is by service tier; None stands for what nobody knows yet."""

    model: str
    input_tokens: int
    output_tokens: OutputEstimate | None
    cost: Mapping[str, CostEstimate]
    currency: str
    start_eta_s: float | None
    finish_eta_s: float | None
    raw: Json


def parse_estimate(body: Json) -> Estimate:
    """An estimate of the API."""
    return Estimate(
        model=body["model"],
        input_tokens=body["input_tokens"],
        output_tokens=_output_tokens(body.get("output_tokens")),
        cost={tier: _cost(cost) for tier, cost in body["tiers"].items()},
        currency=body.get("currency", "USD"),
        start_eta_s=body.get("start_eta_s"),
        finish_eta_s=body.get("finish_eta_s"),
        raw=body,
    )


def _output_tokens(body: Mapping[str, Any] | None) -> OutputEstimate | None:
    if not body or body.get("p50") is None:
        return None
    quantiles = (body["p50"], body["p90"], body["p99"])
    return OutputEstimate(*quantiles, body.get("source"), body.get("samples"))


def _cost(body: Mapping[str, Any]) -> CostEstimate:
    return CostEstimate(body.get("p50_micros"), body.get("p90_micros"), body.get("max_micros"))
