"""How a job ends: its states, the fine reasons, and who pays. One table, used by every process."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class JobStatus(StrEnum):
    """OpenAI's words. Stored and sent."""

    QUEUED = "queued"  # accepted; waits for a worker, or for its next attempt
    IN_PROGRESS = "in_progress"  # an attempt holds it
    COMPLETED = "completed"  # the model stopped by itself, or at a stop string
    INCOMPLETE = "incomplete"  # output cut short; what was produced is valid and paid for
    FAILED = "failed"  # no usable output; nobody pays
    CANCELLED = "cancelled"


TERMINAL = frozenset(
    {JobStatus.COMPLETED, JobStatus.INCOMPLETE, JobStatus.FAILED, JobStatus.CANCELLED}
)


class Dialect(StrEnum):
    """The words a job was asked for in, and is shown in. Stored."""

    JOB = "job"  # our own
    CHAT = "chat"  # chat completions
    COMPLETION = "completion"  # text completions
    RESPONSE = "response"  # responses


class OnDisconnect(StrEnum):
    """What becomes of a job when nobody waits for it any more. Stored."""

    CONTINUE = "continue"  # it runs to its end; its stream can be resumed
    CANCEL = "cancel"  # it is cancelled after a grace; what was produced is billed


class Payer(StrEnum):
    """Who bears the tokens of a job. Stored in its outcome."""

    TENANT = "tenant"  # charged for the tokens produced
    PLATFORM = "platform"  # produced, but our fault: shown as waste
    NOBODY = "nobody"  # nothing was produced


@dataclass(frozen=True, slots=True)
class Ending:
    """One row of the table of endings."""

    status: JobStatus
    reason: str | None
    is_retryable: bool
    payer: Payer


COMPLETED = Ending(JobStatus.COMPLETED, None, False, Payer.TENANT)
MAX_OUTPUT_TOKENS = Ending(JobStatus.INCOMPLETE, "max_output_tokens", False, Payer.TENANT)
BUDGET_EXHAUSTED = Ending(JobStatus.INCOMPLETE, "budget_exhausted", False, Payer.TENANT)
DEADLINE_AFTER_START = Ending(JobStatus.INCOMPLETE, "deadline_exceeded", False, Payer.TENANT)
DEADLINE_BEFORE_START = Ending(JobStatus.FAILED, "deadline_exceeded", True, Payer.NOBODY)
WORKER_LOST = Ending(JobStatus.FAILED, "worker_lost", True, Payer.PLATFORM)
ENGINE_ERROR = Ending(JobStatus.FAILED, "engine_error", True, Payer.PLATFORM)
CANCELLED_BY_USER = Ending(JobStatus.CANCELLED, "cancelled_by_user", False, Payer.TENANT)
CANCELLED_BY_OPERATOR = Ending(JobStatus.CANCELLED, "cancelled_by_operator", True, Payer.PLATFORM)

ENDINGS = (
    COMPLETED,
    MAX_OUTPUT_TOKENS,
    BUDGET_EXHAUSTED,
    DEADLINE_AFTER_START,
    DEADLINE_BEFORE_START,
    WORKER_LOST,
    ENGINE_ERROR,
    CANCELLED_BY_USER,
    CANCELLED_BY_OPERATOR,
)


def cancelled_by(who: str) -> Ending:
    """The ending of a cancelled job: `who` is `user` or `operator`."""
    return CANCELLED_BY_OPERATOR if who == "operator" else CANCELLED_BY_USER
