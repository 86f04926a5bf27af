"""What a job may be asked for. The API's reference explains each field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Required, TypedDict

ServiceTier = Literal["auto", "default", "flex", "priority", "batch"]


class Message(TypedDict, total=False):
    """One message of a chat."""

    role: Required[Literal["system", "developer", "user", "assistant"]]
    content: Required[str | Sequence[Mapping[str, str]]]
    name: str


class CreateJobParams(TypedDict, total=False):
    """Give `model`, and either `messages` or `prompt`."""

    model: Required[str]
    messages: Sequence[Message]
    prompt: str
    max_tokens: int
    max_output_tokens: int
    max_completion_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[str, float]
    seed: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    min_tokens: int
    ignore_eos: bool
    response_format: Mapping[str, Any]
    structured_outputs: Mapping[str, Any]
    metadata: Mapping[str, str]
    user: str
    service_tier: ServiceTier
    deadline_s: float
    on_disconnect: Literal["continue", "cancel"]
