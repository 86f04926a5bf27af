"""Responses and estimates, for the OpenAPI document alone, as in objects.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.objects import Shown

EndpointName = Literal["/v1/jobs", "/v1/chat/completions", "/v1/completions"]


class EstimateBody(BaseModel):
    """The body of the endpoint, and its name."""

    model_config = ConfigDict(extra="allow")

    endpoint: EndpointName | None = None
    model: Annotated[str, Field(min_length=1, max_length=128)]


class UsualLengths(Shown):
    """How long answers usually are, in tokens."""

    p50: int
    p90: int
    p99: int
    source: str
    samples: int


class EstimatedCosts(Shown):
    """Of one tier."""

    p50_micros: int | None
    p90_micros: int | None
    max_micros: int


class EstimateShown(Shown):
    """What a request would cost."""

    object: Literal["estimate"]
    model: str
    input_tokens: int
    max_output_tokens: int
    output_tokens: UsualLengths | None
    currency: str
    tiers: dict[str, EstimatedCosts]
    start_eta_s: float | None
    finish_eta_s: float | None


class ResponseShown(BaseModel):
    """OpenAI's response. Its many fields stand in OpenAI's own reference."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    model: str
    output: list[dict[str, Any]]


class InputTokens(Shown):
    """How many tokens an input has."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class ResponseDeleted(Shown):
    """A response that is gone."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ChatCompletionDeleted(Shown):
    """A chat completion that is gone."""

    id: str
    object: Literal["chat.completion.deleted"]
    deleted: Literal[True]


class CompletionDeleted(Shown):
    """A completion that is gone."""

    id: str
    object: Literal["text_completion.deleted"]
    deleted: Literal[True]


class JobDeleted(Shown):
    """A job that is gone."""

    id: str
    object: Literal["job"]
    deleted: Literal[True]


class BatchDeleted(Shown):
    """A batch that is gone."""

    id: str
    object: Literal["batch"]
    deleted: Literal[True]
