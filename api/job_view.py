"""The job object: a row of Postgres as the wire shows it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from api.json_pieces import Entries, LaterList, ListPart
from api.tools.calls import split_answer
from store.jobs import JobRow
from tasks.ids import format_job_id
from tasks.jobs import ENDINGS, JobStatus

_MESSAGES = {
    "cancelled_by_user": "The job was cancelled.",
    "cancelled_by_operator": "The job was cancelled by the operator.",
    "deadline_exceeded": "The job's deadline passed before it could start.",
    "worker_lost": "The workers running this job were lost.",
    "engine_error": "The engine failed on this request.",
}


def job_object(row: JobRow, *, position: int | None = None) -> dict[str, Any]:
    """The job object of wire format 0. `position` counts the jobs ahead of a queued one."""
    job_id = format_job_id(row["id"])
    return {
        "id": job_id,
        "object": "job",
        "status": row["status"],
        "model": row["model"],
        "model_requested": row["model_requested"],
        "service_tier": row["service_tier"],
        "created_at": unix_time(row["created_at"]),
        "started_at": unix_time(row["started_at"]),
        "finished_at": unix_time(row["finished_at"]),
        "deadline_at": unix_time(row["deadline_at"]),
        "attempt": row["attempt"],
        "queue": queue_object(row, position) if row["status"] == JobStatus.QUEUED else None,
        "output": [_choice(row, choice) for choice in row["output"] or ()],
        "usage": _usage(row),
        "cost_micros": row["cost_micros"],
        "currency": row["currency"],
        "error": job_error(row),
        "incomplete_details": _incomplete_details(row),
        "metadata": row["metadata"],
        "events_url": events_url(job_id),
    }


def events_url(job_id: str) -> str:
    """Where the job's events are, relative to the API's own address."""
    return f"/v1/jobs/{job_id}/events"


def queue_object(row: JobRow, position: int | None) -> dict[str, Any]:
    """Where a queued job waits, and for what. There is no estimate of the time yet."""
    reason = row["reason"] or ("next_attempt" if row["attempt"] else "waiting_for_slot")
    return {"position": position, "eta_s": None, "reason": reason}


def is_terminal(row: JobRow) -> bool:
    """Whether the job is over."""
    return row["finished_at"] is not None


def unix_time(at: datetime | None) -> int | None:
    """Whole seconds, as OpenAI's objects have them."""
    return int(at.timestamp()) if at else None


def num_chars(row: JobRow) -> int:
    """Of all the job's answers."""
    return sum(len(choice["text"]) for choice in row["output"] or ())


def _choice(row: JobRow, choice: dict[str, Any]) -> dict[str, Any]:
    """One answer; what it calls is taken out of its text."""
    for name in ("logprobs", "prompt_logprobs"):
        if choice.get(name) is True:
            lists = _later_lists(choice["index"], is_prompt=name == "prompt_logprobs")
            choice = choice | {name: lists}
    if row["tool_format"] is None:
        return choice
    answer = split_answer(choice, row["tool_format"], job_id=row["id"])
    return choice | {
        "text": answer.text,
        "tool_calls": [call.as_object() for call in answer.calls],
    }


def _later_lists(index: int, *, is_prompt: bool) -> dict[str, LaterList]:
    def ids() -> Entries:
        return lambda token_ids, values: token_ids

    def values() -> Entries:
        return lambda token_ids, values: values

    parts = {"token_ids": ids, "values": values}
    return {
        name: LaterList((ListPart(index, entries, is_prompt),)) for name, entries in parts.items()
    }


def _usage(row: JobRow) -> dict[str, int] | None:
    if row["output_tokens"] is None:
        return None
    return {
        "input_tokens": row["input_tokens"],
        "cached_tokens": row["cached_tokens"] or 0,
        "output_tokens": row["output_tokens"],
    }


def job_error(row: JobRow) -> dict[str, Any] | None:
    """Why a job failed or was cancelled: `{code, message, retryable}`."""
    if row["status"] not in (JobStatus.FAILED, JobStatus.CANCELLED):
        return None
    code = row["error_code"] or row["reason"]
    retryable = row["error_retryable"]
    return {
        "code": code,
        "message": row["error_message"] or _MESSAGES.get(code, "The job failed."),
        "retryable": _is_retryable(row) if retryable is None else retryable,
    }


def _is_retryable(row: JobRow) -> bool:
    return any(
        ending.is_retryable
        for ending in ENDINGS
        if (ending.status, ending.reason) == (row["status"], row["reason"])
    )


def _incomplete_details(row: JobRow) -> dict[str, str] | None:
    return {"reason": row["reason"]} if row["status"] == JobStatus.INCOMPLETE else None
