"""Every call of the API as a value: what to send and how to read the answer. No I/O in here, so the
sync and the async client share it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from millrace.params import CreateJobParams
from millrace.types import (
    Job,
    Json,
    Model,
    Page,
    Usage,
    parse_job,
    parse_jobs,
    parse_model,
    parse_models,
    parse_usage,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request. Every call here may be repeated: creating a job carries an idempotency key."""

    method: str
    path: str
    parse: Callable[[Json], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    extra_timeout_s: float = 0.0  # the server may take this much longer to answer


def create_job(params: CreateJobParams, *, idempotency_key: str | None, wait_s: float) -> Call[Job]:
    """A key of our own makes a repeated request harmless where the caller gave none."""
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    return Call(
        "POST",
        "/v1/jobs",
        parse_job,
        params={"wait_s": wait_s} if wait_s else {},
        json=dict(params),
        headers=headers,
        extra_timeout_s=wait_s,
    )


def get_job(job_id: str, *, wait_s: float) -> Call[Job]:
    params = {"wait_s": wait_s} if wait_s else {}
    return Call("GET", f"/v1/jobs/{job_id}", parse_job, params=params, extra_timeout_s=wait_s)


def cancel_job(job_id: str) -> Call[Job]:
    return Call("POST", f"/v1/jobs/{job_id}/cancel", parse_job)


def list_jobs(*, after: str | None, limit: int, status: str | None) -> Call[Page[Job]]:
    params = {"after": after, "limit": limit, "status": status}
    return Call("GET", "/v1/jobs", parse_jobs, params=_given(params))


def list_models() -> Call[tuple[Model, ...]]:
    return Call("GET", "/v1/models", parse_models)


def get_model(model: str) -> Call[Model]:
    return Call("GET", f"/v1/models/{model}", parse_model)


def get_usage(*, start_time: int | None, end_time: int | None) -> Call[Usage]:
    params = {"start_time": start_time, "end_time": end_time}
    return Call("GET", "/v1/usage", parse_usage, params=_given(params))


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}
