"""What clients get, for the OpenAPI document alone: routes build the answers themselves, and tests
compare the two. Nothing is left out: an answer has no field that doesn't stand here.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from store.files import Purpose
from tasks.jobs import JobStatus
from tasks.queues import ServiceTier

T = TypeVar("T")


class Shown(BaseModel):
    """Fields with a default may be missing."""

    model_config = ConfigDict(extra="forbid")


class ErrorObject(Shown):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Shown):
    """The body of every error."""

    error: ErrorObject


class Page(Shown, Generic[T]):
    """Part of a list."""

    object: Literal["list"]
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool


class CallShown(Shown):
    """A function and its arguments as text of JSON."""

    name: str
    arguments: str


class ToolCallShown(Shown):
    """A call of a function."""

    id: str
    type: Literal["function"]
    function: CallShown


class QueueShown(Shown):
    """Where a job waits."""

    position: int | None
    eta_s: float | None
    reason: str


class OutputShown(Shown):
    """One choice of a job."""

    index: int
    text: str
    finish_reason: str | None
    tool_calls: list[ToolCallShown] = Field(default_factory=list)
    logprobs: dict[str, Any] | None = None
    prompt_logprobs: dict[str, Any] | None = None


class TokensShown(Shown):
    """Tokens of a job."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int


class JobErrorShown(Shown):
    """Why a job failed."""

    code: str
    message: str
    retryable: bool


class ReasonShown(Shown):
    """What cut a job short."""

    reason: str


class JobShown(Shown):
    """The job object."""

    id: str
    object: Literal["job"]
    status: JobStatus
    model: str
    model_requested: str
    service_tier: ServiceTier
    created_at: int
    started_at: int | None
    finished_at: int | None
    deadline_at: int
    attempt: int
    queue: QueueShown | None
    output: list[OutputShown]
    usage: TokensShown | None
    cost_micros: int | None
    currency: str
    error: JobErrorShown | None
    incomplete_details: ReasonShown | None
    metadata: dict[str, str]
    events_url: str


class Extension(Shown):
    """What OpenAI has no field for."""

    job_id: str
    status: JobStatus
    reason: str | None
    cost_micros: int | None
    currency: str
    model_requested: str


class CompletionUsage(Shown):
    """Tokens of an answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]
    completion_tokens_details: dict[str, int]


class MessageShown(Shown):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    annotations: list[Any]
    tool_calls: list[ToolCallShown] = Field(default_factory=list)


class ChatChoice(Shown):
    """One answer."""

    index: int
    message: MessageShown
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletionShown(Shown):
    """OpenAI's chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    service_tier: ServiceTier
    system_fingerprint: str | None
    choices: list[ChatChoice]
    usage: CompletionUsage
    millrace: Extension


class TextChoice(Shown):
    """One text."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class CompletionShown(Shown):
    """OpenAI's text completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[TextChoice]
    usage: CompletionUsage
    millrace: Extension


class FileShown(Shown):
    """OpenAI's file object."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Purpose
    status: str
    status_details: str | None


class FileDeleted(Shown):
    """A file that is gone."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class UploadBody(BaseModel):
    """The form of an upload."""

    file: str = Field(json_schema_extra={"format": "binary"})
    purpose: Literal["batch", "user_data"]
    anchor: Literal["created_at"] | None = Field(default=None, alias="expires_after[anchor]")
    seconds: int | None = Field(
        default=None, alias="expires_after[seconds]", ge=3_600, le=2_592_000
    )


class ModelShown(Shown):
    """A model and its prices."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    status: str
    status_reason: str | None
    context_length: int
    max_output_tokens: int
    capabilities: list[str]
    pricing: dict[str, Any]


class ModelList(Shown):
    """All models."""

    object: Literal["list"]
    data: list[ModelShown]


class UsageShown(Shown):
    """What a tenant used, and what is left."""

    object: Literal["usage"]
    start_time: int
    end_time: int
    currency: str
    balance_micros: int
    held_micros: int
    available_micros: int
    totals: dict[str, int]
    data: list[dict[str, Any]]
