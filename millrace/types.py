"""What calls return. Fields the server adds later are ignored here and stand in `raw`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

TERMINAL_STATUSES = frozenset({"completed", "incomplete", "failed", "cancelled"})
ENDED_BATCH_STATUSES = frozenset({"completed", "failed", "expired", "cancelled"})

T = TypeVar("T")
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Queue:
    """Where a queued job waits. `position` counts the jobs ahead of it."""

    position: int | None = None
    eta_s: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Output:
    """One text a job produced."""

    index: int
    text: str
    finish_reason: str | None = None


@dataclass(frozen=True)
class TokenUsage:
    """Tokens of one job."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class JobError:
    """Why a job failed or was cancelled, and whether the same request may succeed later."""

    code: str
    message: str
    retryable: bool


@dataclass(frozen=True)
class Job:
    """A job. Times are unix seconds, money is integer micros of `currency`."""

    id: str
    status: str
    model: str
    model_requested: str
    service_tier: str
    created_at: int
    started_at: int | None
    finished_at: int | None
    deadline_at: int
    attempt: int
    queue: Queue | None
    output: tuple[Output, ...]
    usage: TokenUsage | None
    cost_micros: int | None
    currency: str
    error: JobError | None
    incomplete_details: Mapping[str, str] | None
    metadata: Mapping[str, str]
    events_url: str
    raw: Json

    @property
    def is_terminal(self) -> bool:
        """Whether the job is over."""
        return self.status in TERMINAL_STATUSES

    @property
    def text(self) -> str:
        """The text produced; empty while there is none."""
        return self.output[0].text if self.output else ""


@dataclass(frozen=True)
class Event:
    """One event of a job. `seq` is None for `queued`, which is not replayed."""

    type: str
    seq: int | None
    data: Json

    @property
    def text(self) -> str:
        """What a `token` adds; empty for other events. A `gap` restates all text, in its data."""
        return str(self.data["text"]) if self.type == "token" else ""

    @property
    def job(self) -> Job | None:
        """The finished job of a `done` event."""
        return parse_job(self.data["job"]) if self.type == "done" else None


@dataclass(frozen=True)
class Model:
    """A model that takes jobs. `pricing` is micros of a currency per million tokens, by tier."""

    id: str
    created: int
    context_length: int
    max_output_tokens: int
    capabilities: tuple[str, ...]
    pricing: Json
    raw: Json


@dataclass(frozen=True)
class Usage:
    """What a tenant used in a period, and its account as it stands."""

    start_time: int
    end_time: int
    currency: str
    balance_micros: int
    held_micros: int
    available_micros: int
    totals: Mapping[str, int]
    data: tuple[Json, ...]  # one a model and tier
    raw: Json


@dataclass(frozen=True)
class File:
    """A stored file, without its contents."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str
    raw: Json
    expires_at: int | None = None


@dataclass(frozen=True)
class RequestCounts:
    """Lines of a batch."""

    total: int = 0
    completed: int = 0
    failed: int = 0

    @property
    def ended(self) -> int:
        """Lines that are over, either way."""
        return self.completed + self.failed


@dataclass(frozen=True)
class Batch:
    """A file of requests, answered in a file. `errors` says why it was refused as a whole."""

    id: str
    status: str
    endpoint: str
    input_file_id: str
    created_at: int
    request_counts: RequestCounts
    errors: tuple[Json, ...]
    raw: Json
    output_file_id: str | None = None
    error_file_id: str | None = None
    expires_at: int | None = None

    @property
    def waits_for(self) -> str | None:
        """What holds it up, in words; None while it goes on."""
        waits_for = (self.raw.get("millrace") or {}).get("waits_for")
        return waits_for["message"] if waits_for else None

    @property
    def is_terminal(self) -> bool:
        """Whether the batch is over and its files are complete."""
        return self.status in ENDED_BATCH_STATUSES


@dataclass(frozen=True)
class Page(Generic[T]):
    """Part of a list; pass `last_id` as `after` for the next part."""

    data: tuple[T, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool


def parse_job(body: Json) -> Job:
    """A job object of the API."""
    nested: dict[str, Any] = {
        "queue": _optional(Queue, body.get("queue")),
        "output": tuple(_known(Output, item) for item in body.get("output") or ()),
        "usage": _optional(TokenUsage, body.get("usage")),
        "error": _optional(JobError, body.get("error")),
        "raw": body,
    }
    return _known(Job, {**body, **nested})


def parse_jobs(body: Json) -> Page[Job]:
    """A page of jobs."""
    return _page(body, parse_job)


def parse_file(body: Json) -> File:
    """A file object of the API."""
    return _known(File, {**body, "raw": body})


def parse_files(body: Json) -> Page[File]:
    """A page of files."""
    return _page(body, parse_file)


def parse_batch(body: Json) -> Batch:
    """A batch object of the API."""
    nested: dict[str, Any] = {
        "request_counts": _known(RequestCounts, body.get("request_counts") or {}),
        "errors": tuple((body.get("errors") or {}).get("data") or ()),
        "raw": body,
    }
    return _known(Batch, {**body, **nested})


def parse_batches(body: Json) -> Page[Batch]:
    """A page of batches."""
    return _page(body, parse_batch)


def parse_model(body: Json) -> Model:
    """A model object of the API."""
    return _known(Model, {**body, "capabilities": tuple(body["capabilities"]), "raw": body})


def parse_models(body: Json) -> tuple[Model, ...]:
    """All models."""
    return tuple(parse_model(item) for item in body["data"])


def parse_usage(body: Json) -> Usage:
    """A usage report."""
    return _known(Usage, {**body, "data": tuple(body["data"]), "raw": body})


def _page(body: Json, parse: Callable[[Json], T]) -> Page[T]:
    data = tuple(parse(item) for item in body["data"])
    return Page(data, body["first_id"], body["last_id"], body["has_more"])


def _optional(cls: type[T], body: Json | None) -> T | None:
    return None if body is None else _known(cls, body)


def _known(cls: type[T], body: Json) -> T:
    names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: value for name, value in body.items() if name in names})
