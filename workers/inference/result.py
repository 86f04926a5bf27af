"""What a job's end writes: its output, choice by choice, and the counts that are billed. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from billing.pricing import cost_micros
from store.attempts import AttemptOutcome, Finish
from tasks.errors import ServiceError
from tasks.jobs import Ending, JobStatus, Payer
from workers.inference.choices import Choice
from workers.inference.engine.protocol import FinishReason
from workers.inference.job_stream import JobStream
from workers.inference.prompts import asks_prompt_logprobs, prompt_token_ids

_OUTCOMES: dict[FinishReason, AttemptOutcome] = {
    FinishReason.ERROR: "error",
    FinishReason.ABORT: "cancelled",
}


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt ended the job."""

    ending: Ending
    finish_reason: FinishReason
    cached_tokens: int
    error: ServiceError | None = None


def finish_record(stream: JobStream, worker_id: UUID, end: End) -> Finish:
    """The write that ends the job. Output tokens are those of all choices together."""
    claimed = stream.claimed
    ending = end.ending
    has_ended = end.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
    if not stream.has_produced and not has_ended and ending.payer == Payer.TENANT:
        ending = replace(ending, payer=Payer.NOBODY)
    cost = cost_micros(
        input_tokens=claimed.input_tokens,
        cached_tokens=end.cached_tokens,
        output_tokens=stream.num_tokens,
        prices=claimed.prices,
    )
    return Finish(
        job_id=claimed.job_id,
        attempt=claimed.attempt,
        worker_id=worker_id,
        ending=ending,
        attempt_outcome=_OUTCOMES.get(end.finish_reason, "ok"),
        cached_tokens=end.cached_tokens,
        output_tokens=stream.num_tokens,
        attempt_tokens=stream.attempt_tokens,
        cost_micros=cost if ending.payer == Payer.TENANT else 0,
        output=_output(stream, ending),
        last_seq=stream.marker_seq(),
        event_log=stream.event_log(),
        error_code=end.error.code if end.error else None,
        error_message=end.error.message if end.error else None,
    )


def _output(stream: JobStream, ending: Ending) -> list[dict[str, Any]]:
    """The job object's `output`; a failed job has none."""
    if ending.status is JobStatus.FAILED:
        return []
    output = [_choice_object(choice, stream.asks_logprobs) for choice in stream.choices]
    if asks_prompt_logprobs(stream.claimed):
        asked = zip(stream.prompts, prompt_token_ids(stream.claimed), strict=True)
        for prompt, token_ids in asked:
            logprobs = {"token_ids": token_ids, "values": prompt.logprobs}
            output[prompt.first_choice]["prompt_logprobs"] = logprobs if prompt.is_scored else None
    return output


def _choice_object(choice: Choice, asks_logprobs: bool) -> dict[str, Any]:
    shown = {"index": choice.index, "text": choice.text, "finish_reason": choice.finish_reason}
    if not asks_logprobs:
        return shown
    is_complete = len(choice.logprobs) == len(choice.token_ids)
    logprobs = {"token_ids": choice.token_ids, "values": choice.logprobs}
    return {**shown, "logprobs": logprobs if is_complete else None}
