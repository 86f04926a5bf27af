"""Every call of the API as a value: what to send and how to read the answer. No I/O in here, so the
sync and the async client share it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx

from millrace import config
from millrace.errors import MillraceError
from millrace.estimates import Estimate, parse_estimate
from millrace.params import CreateJobParams
from millrace.types import (
    Batch,
    File,
    Job,
    Json,
    Model,
    Page,
    Usage,
    parse_batch,
    parse_batches,
    parse_file,
    parse_files,
    parse_job,
    parse_jobs,
    parse_model,
    parse_models,
    parse_usage,
)
from millrace.uploads import Progress, Upload

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request. Creating a job carries an idempotency key, and an upload whose answer was lost
    leaves a file that nobody uses; a call that must not be repeated says so.
    """

    method: str
    path: str
    parse: Callable[[Json], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    upload: Upload | None = None
    can_repeat: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)
    extra_timeout_s: float = 0.0  # the server may take this much longer to answer

    def options(self) -> dict[str, Any]:
        """For httpx, beside method, path and body."""
        timeout = config.timeout(self.extra_timeout_s)
        return {"params": self.params, "headers": self.headers, "timeout": timeout}

    def read(self, response: httpx.Response) -> T:
        """What a good answer says. Raises MillraceError if it is not one of Millrace's."""
        try:
            return self.parse(response.json())
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            url = response.request.url
            raise MillraceError(f"What answers at {url} is not Millrace.") from error

    @contextmanager
    def body(self) -> Iterator[dict[str, Any]]:
        """What httpx is to send. An upload's file is open for so long."""
        if self.upload is None:
            yield {"json": self.json}
        else:
            with self.upload.opened() as form:
                yield form


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
    path = f"/v1/jobs/{_segment(job_id)}"
    return Call("GET", path, parse_job, params=params, extra_timeout_s=wait_s)


def cancel_job(job_id: str) -> Call[Job]:
    return Call("POST", f"/v1/jobs/{_segment(job_id)}/cancel", parse_job)


def delete_job(job_id: str) -> Call[bool]:
    # One that runs is cancelled first, which the server waits for.
    return Call("DELETE", f"/v1/jobs/{_segment(job_id)}", _is_deleted, extra_timeout_s=10.0)


def job_events(job_id: str) -> str:
    """The path of a job's stream."""
    return f"/v1/jobs/{_segment(job_id)}/events"


def list_jobs(*, after: str | None, limit: int, status: str | None) -> Call[Page[Job]]:
    params = {"after": after, "limit": limit, "status": status}
    return Call("GET", "/v1/jobs", parse_jobs, params=_given(params))


def estimate(params: CreateJobParams) -> Call[Estimate]:
    return Call("POST", "/v1/estimate", parse_estimate, json=dict(params))


def upload_file(
    path: str | Path,
    *,
    purpose: str,
    filename: str | None,
    expires_after_s: int | None,
    progress: Progress | None,
) -> Call[File]:
    fields = {"purpose": purpose}
    if expires_after_s is not None:
        fields["expires_after[anchor]"] = "created_at"
        fields["expires_after[seconds]"] = str(expires_after_s)
    upload = Upload(Path(path), filename or Path(path).name, fields, progress)
    # The server may still store the last of it when all is sent.
    return Call("POST", "/v1/files", parse_file, upload=upload, extra_timeout_s=60.0)


def get_file(file_id: str) -> Call[File]:
    return Call("GET", f"/v1/files/{_segment(file_id)}", parse_file)


def delete_file(file_id: str) -> Call[bool]:
    return Call("DELETE", f"/v1/files/{_segment(file_id)}", _is_deleted)


def list_files(
    *, after: str | None, limit: int, order: str | None, purpose: str | None
) -> Call[Page[File]]:
    params = {"after": after, "limit": limit, "order": order, "purpose": purpose}
    return Call("GET", "/v1/files", parse_files, params=_given(params))


def file_content(file_id: str) -> str:
    """The path of a file's bytes."""
    return f"/v1/files/{_segment(file_id)}/content"


def create_batch(
    input_file_id: str,
    *,
    endpoint: str,
    completion_window: str,
    metadata: Mapping[str, str] | None,
) -> Call[Batch]:
    fields = {
        "input_file_id": input_file_id,
        "endpoint": endpoint,
        "completion_window": completion_window,
        "metadata": metadata,
    }
    return Call("POST", "/v1/batches", parse_batch, json=_given(fields), can_repeat=False)


def get_batch(batch_id: str) -> Call[Batch]:
    return Call("GET", f"/v1/batches/{_segment(batch_id)}", parse_batch)


def cancel_batch(batch_id: str) -> Call[Batch]:
    return Call("POST", f"/v1/batches/{_segment(batch_id)}/cancel", parse_batch)


def delete_batch(batch_id: str) -> Call[bool]:
    return Call("DELETE", f"/v1/batches/{_segment(batch_id)}", _is_deleted)


def list_batches(*, after: str | None, limit: int) -> Call[Page[Batch]]:
    return Call(
        "GET", "/v1/batches", parse_batches, params=_given({"after": after, "limit": limit})
    )


def list_models() -> Call[tuple[Model, ...]]:
    return Call("GET", "/v1/models", parse_models)


def get_model(model: str) -> Call[Model]:
    name = "/".join(map(_segment, model.split("/")))
    return Call("GET", f"/v1/models/{name}", parse_model)


def get_usage(*, start_time: int | None, end_time: int | None) -> Call[Usage]:
    params = {"start_time": start_time, "end_time": end_time}
    return Call("GET", "/v1/usage", parse_usage, params=_given(params))


def _is_deleted(body: Json) -> bool:
    return bool(body.get("deleted"))


def _segment(name: str) -> str:
    """Of a path. What is no id names nothing, and never another path."""
    return quote(name, safe="") if name.strip(".") else "-"


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}
