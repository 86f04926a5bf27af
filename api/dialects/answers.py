"""What chat and text completions share: usage, finish reasons, errors of jobs that failed."""

from __future__ import annotations

from typing import Any

from api.job_view import job_error
from store.jobs import JobRow
from tasks import errors
from tasks.errors import InternalError, JobCancelled, ServiceError
from tasks.ids import format_job_id
from tasks.jobs import JobStatus

_BY_CODE: dict[str, type[ServiceError]] = {
    cls.code: cls
    for cls in (
        errors.ContextLengthExceeded,
        errors.DeadlineExceeded,
        errors.EngineFailed,
        errors.InvalidGrammar,
        errors.InvalidPrompt,
        errors.InvalidRequest,
        errors.ModelNotFound,
        errors.UnsupportedParameter,
        errors.WorkerLost,
    )
}


def failure_of(row: JobRow) -> ServiceError | None:
    """Why a finished job has nothing to show; None if it has."""
    error = job_error(row)
    if row["status"] == JobStatus.FAILED:
        assert error is not None
        cls = _BY_CODE.get(error["code"], InternalError)
        return cls(error["message"])
    if row["status"] == JobStatus.CANCELLED and not row["output"]:
        return JobCancelled()
    return None


def finish_reason(
    choice: dict[str, Any], *, has_calls: bool = False, is_cut_in_call: bool = False
) -> str:
    """OpenAI's closed list. Whatever cut a text short is `length`, as is a stop string inside of a
    call: nobody may take that for one to be run. The true reason stands in the `millrace` object.
    """
    if choice["finish_reason"] != "stop" or is_cut_in_call:
        return "length"
    return "tool_calls" if has_calls else "stop"


def completion_usage(row: JobRow) -> dict[str, Any]:
    """Tokens, in the words of chat and text completions."""
    prompt, output = row["input_tokens"], row["output_tokens"] or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": row["cached_tokens"] or 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def extension(row: JobRow) -> dict[str, Any]:
    """Our own object on the answers: what OpenAI has no field for."""
    return {
        "job_id": format_job_id(row["id"]),
        "status": row["status"],
        "reason": row["reason"],
        "cost_micros": row["cost_micros"],
        "currency": row["currency"],
        "model_requested": row["model_requested"],
    }
