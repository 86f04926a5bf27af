"""Batches as clients get them, for the OpenAPI document alone."""

from __future__ import annotations

from typing import Any, Literal

from api.schemas.objects import Shown


class BatchMistake(Shown):
    """Why a file can't be used, and in which line."""

    code: str
    message: str
    line: int | None
    param: str | None


class BatchMistakes(Shown):
    """At most a hundred."""

    object: Literal["list"]
    data: list[BatchMistake]


class RequestCounts(Shown):
    """Lines."""

    total: int
    completed: int
    failed: int


class WaitsFor(Shown):
    """What holds a batch up, such as `insufficient_quota`."""

    code: str
    message: str


class BatchExtension(Shown):
    """What OpenAI has no field for."""

    waits_for: WaitsFor | None


class BatchShown(Shown):
    """OpenAI's batch object."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchMistakes | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating",
        "failed",
        "in_progress",
        "finalizing",
        "completed",
        "expired",
        "cancelling",
        "cancelled",
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: dict[str, Any]
    metadata: dict[str, str]
    service_tier: str
    millrace: BatchExtension
