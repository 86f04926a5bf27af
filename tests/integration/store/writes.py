"""What workers write, with defaults for what a test doesn't care about."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from store.attempts import Checkpoint, Claimed, Finish, Requeue, RunningCheckpoint
from store.claiming import claim_ticket
from store.leases import Lease, register
from store.pools import DictConnection
from store.tenants import create_tenant
from tasks.ids import uuid7
from tasks.jobs import COMPLETED
from tasks.token_ids import pack_token_ids
from tests.support.jobs import Jobs

OUTPUT = [{"index": 0, "text": "four", "finish_reason": "stop"}]


def lease(connection: DictConnection, **changes: Any) -> UUID:
    """Announce a worker process; its id."""
    fields: dict[str, Any] = {
        "worker_id": uuid7(),
        "hostname": "host",
        "pid": 1,
        "pool": "default",
        "device": "cpu",
        "models": ["stub"],
        "slots": 4,
    }
    announced = Lease(**{**fields, **changes})
    register(connection, announced)
    return announced.worker_id


def expire(jobs: Jobs, worker_id: UUID) -> None:
    """Let a worker have been silent for too long."""
    with jobs.connect() as owner:
        owner.execute(
            "UPDATE worker_leases SET beat_at = now() - interval '9 s',"
            " expires_at = now() - interval '1 s' WHERE worker_id = %s",
            (worker_id,),
        )


def claim(connection: DictConnection, worker_id: UUID, job_id: UUID) -> Claimed:
    """Claim a job that must be there to claim."""
    claimed = claim_ticket(connection, worker_id, job_id)
    assert claimed is not None
    assert claimed.job_id == job_id
    return claimed


def checkpoint(text: str) -> Checkpoint:
    """After this text, a token and an event a letter, behind the event of the start."""
    ids = [ord(letter) for letter in text]
    return Checkpoint(seq=len(ids) + 1, token_ids=pack_token_ids(ids), text=text)


def running_checkpoint(claimed: Claimed, text: str, **changes: Any) -> RunningCheckpoint:
    fields: dict[str, Any] = {
        "job_id": claimed.job_id,
        "attempt": claimed.attempt,
        "checkpoint": checkpoint(text),
        "output_tokens": len(text),
    }
    return RunningCheckpoint(**{**fields, **changes})


def finish_of(claimed: Claimed, worker_id: UUID, **changes: Any) -> Finish:
    """The end of a claimed job that produced four tokens."""
    fields: dict[str, Any] = {
        "job_id": claimed.job_id,
        "attempt": claimed.attempt,
        "worker_id": worker_id,
        "ending": COMPLETED,
        "attempt_outcome": "ok",
        "cached_tokens": 1,
        "output_tokens": 4,
        "attempt_tokens": 4,
        "cost_micros": 6,
        "output": OUTPUT,
        "last_seq": 5,
        "event_log": b"events",
    }
    return Finish(**{**fields, **changes})


def requeue_of(claimed: Claimed, worker_id: UUID, **changes: Any) -> Requeue:
    """A claimed job given back at once, for a drain."""
    fields: dict[str, Any] = {
        "job_id": claimed.job_id,
        "attempt": claimed.attempt,
        "worker_id": worker_id,
        "reason": "worker_draining",
        "delay_s": 0.0,
        "counts_as_failure": False,
        "checkpoint": checkpoint(""),
        "attempt_tokens": 0,
    }
    return Requeue(**{**fields, **changes})


def another_tenant(jobs: Jobs, *, name: str = "globex", credit_micros: int = 1_000_000) -> UUID:
    """A tenant beside the one of `jobs`."""
    with jobs.connect() as owner:
        return create_tenant(owner, name=name, credit_micros=credit_micros)


def count(jobs: Jobs, table: str) -> int:
    """The number of rows in a table, over all tenants."""
    return int(jobs.query(f"SELECT count(*) AS num FROM {table}")[0]["num"])
