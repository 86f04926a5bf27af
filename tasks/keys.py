"""Every Redis key and channel, with its lifetime and why. Celery's own keys begin with `cel:`."""

from __future__ import annotations

from uuid import UUID

# The braces keep a job's keys in one cluster slot.
STREAM_PATTERN = "stream:{*}"

# A stream lives this long after its last append: while the job runs it is refreshed, and after
# the end it serves late readers until the event log in Postgres takes over.
STREAM_RUNNING_TTL_MS = 3_600_000
STREAM_FINAL_TTL_MS = 900_000

# Entries kept a stream. One entry is one engine step of one choice: more than any output but the
# largest of many choices. Beyond it readers from the start, and the next attempt, get a gap.
STREAM_MAX_ENTRIES = 100_000


def stream_meta(job_id: UUID) -> str:
    """Hash: attempt, last sequence number, final flag, run id of the Redis that wrote it."""
    return f"stream:{{{job_id.hex}}}:meta"


def stream_log(job_id: UUID) -> str:
    """Stream: one entry an event, its id the sequence number."""
    return f"stream:{{{job_id.hex}}}:log"


def stream_channel(job_id: UUID) -> str:
    """Pub/sub channel: wakes readers; what it says is also in the log."""
    return f"stream:{{{job_id.hex}}}"


def job_of_channel(channel: str) -> UUID:
    """The job a channel belongs to."""
    return UUID(hex=channel[len("stream:{") : -1])


# Pub/sub channel to one worker process: job ids to cancel at once. The heartbeat reads the same
# from Postgres, so a lost message costs seconds.
def cancel_channel(worker_id: UUID) -> str:
    """Where a worker hears of cancellations."""
    return f"cancel:{worker_id.hex}"


# String: what a tenant has used of its rate limits, and when. It lives until all of it has come
# back, a minute at most: a missing one says that nothing is used.
def rate_limits(tenant_id: UUID) -> str:
    """One key for all limits of a tenant, so that they are taken together or not at all."""
    return f"limits:{tenant_id.hex}"


def unpaid(tenant_id: UUID, what: str) -> str:
    """The same of things that no credit pays for, in an hour."""
    return f"limits:{tenant_id.hex}:{what}"


# String: the id of the job that a request would have been that was refused by a rate limit. Clients
# come again within a minute.
REFUSAL_TTL_MS = 180_000


def refused_request(request_hash: bytes) -> str:
    """By the hash of the request, which names its tenant too."""
    return f"refused:{request_hash.hex()}"


# String: a random word, kept for ever. Missing or changed, it says that Redis lost its data and all
# hints with it.
HINT_EPOCH = "hints:epoch"
