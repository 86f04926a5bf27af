"""Worker leases: one row a worker process, its id the epoch. Time is Postgres's alone.

A late beat renews a lease that has run out: after an outage of Postgres nobody else may have taken
its jobs, and every write is fenced by the attempt anyway. What was taken, `held_jobs` tells.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from store.apart import at_once_or_apart
from store.pools import AsyncPool, DictConnection

LEASE_S = 8.0  # a dead worker's jobs are requeued this long after its last beat, plus a sweep
BEAT_INTERVAL_S = 2.0
GIVE_BACK_S = 2.0  # a worker that stops is killed soon: statements that time out aren't repeated

_REGISTER = """
INSERT INTO worker_leases (worker_id, hostname, pid, pool, device, models, refused, slots,
    expires_at)
VALUES (%(worker_id)s, %(hostname)s, %(pid)s, %(pool)s, %(device)s, %(models)s, %(refused)s,
    %(slots)s, now() + make_interval(secs => %(lease_s)s))
"""

_BEAT = """
UPDATE worker_leases SET beat_at = now(), expires_at = now() + make_interval(secs => %(lease_s)s),
    num_running = %(num_running)s
WHERE worker_id = %(worker_id)s RETURNING worker_id
"""

_HELD = """
SELECT id AS job_id, attempt, cancel_requested_at IS NOT NULL AS is_cancelled FROM jobs
WHERE worker_id = %(worker_id)s AND status = 'in_progress'
"""

# No lease has the nil id, so for the reaper the job's worker is lost.
_DISOWN = """
UPDATE jobs SET worker_id = '00000000-0000-0000-0000-000000000000'
WHERE id = %(job_id)s AND attempt = %(attempt)s AND worker_id = %(worker_id)s
    AND status = 'in_progress'
"""

_END_LEASE = "DELETE FROM worker_leases WHERE worker_id = %(worker_id)s"

# What is still held goes back like a drained job: with its last checkpoint, and no failure counted.
_GIVE_BACK = """
WITH job AS (
    UPDATE jobs SET status = 'queued', worker_id = NULL, hinted_at = NULL,
        reason = 'worker_drained', run_after = now()
    WHERE worker_id = %(worker_id)s AND status = 'in_progress'
        AND (%(ids)s::uuid[] IS NULL OR id = ANY(%(ids)s::uuid[]))
    RETURNING id, attempt
), attempt AS (
    UPDATE job_attempts a SET ended_at = now(), outcome = 'drained'
    FROM job WHERE a.job_id = job.id AND a.attempt = job.attempt
)
SELECT id FROM job
"""

_EXPIRE_PROCESS = """
UPDATE worker_leases SET expires_at = now()
WHERE hostname = %(hostname)s AND pid = %(pid)s AND expires_at > now()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What a worker says of itself. `refused`: models it can't serve, and why."""

    worker_id: UUID
    hostname: str
    pid: int
    pool: str
    device: str
    models: Sequence[str]
    slots: int
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HeldJob:
    """A job under a worker's lease. `is_cancelled`: somebody asked to cancel it."""

    job_id: UUID
    attempt: int
    is_cancelled: bool


def register(connection: DictConnection, lease: Lease) -> None:
    """Announce a worker process."""
    connection.execute(
        _REGISTER,
        {
            "worker_id": lease.worker_id,
            "hostname": lease.hostname,
            "pid": lease.pid,
            "pool": lease.pool,
            "device": lease.device,
            "models": list(lease.models),
            "refused": Jsonb(dict(lease.refused)),
            "slots": lease.slots,
            "lease_s": LEASE_S,
        },
    )


def beat(connection: DictConnection, worker_id: UUID, *, num_running: int) -> bool:
    """Renew the lease. False: it is gone, and everything under it is lost."""
    row = connection.execute(
        _BEAT, {"worker_id": worker_id, "num_running": num_running, "lease_s": LEASE_S}
    ).fetchone()
    return row is not None


def held_jobs(connection: DictConnection, worker_id: UUID) -> list[HeldJob]:
    """The jobs that Postgres says this worker runs."""
    rows = connection.execute(_HELD, {"worker_id": worker_id}).fetchall()
    return [HeldJob(**row) for row in rows]


def disown(connection: DictConnection, worker_id: UUID, held: HeldJob) -> bool:
    """Leave a job that is held under this lease, and that nobody runs, to the reaper."""
    parameters = {"worker_id": worker_id, "job_id": held.job_id, "attempt": held.attempt}
    return connection.execute(_DISOWN, parameters).rowcount == 1


def set_draining(connection: DictConnection, worker_id: UUID) -> None:
    """Claim nothing more under this lease."""
    connection.execute(
        "UPDATE worker_leases SET draining = true WHERE worker_id = %s", (worker_id,)
    )


def give_up(connection: DictConnection, worker_id: UUID) -> list[UUID]:
    """End a lease in an orderly way. Returns the jobs it still held, which are queued again. One
    that can't be holds up no other, and is left to the reaper.
    """

    def give_back(ids: Sequence[UUID] | None) -> list[UUID]:
        parameters = {"worker_id": worker_id, "ids": None if ids is None else list(ids)}
        return [row["id"] for row in connection.execute(_GIVE_BACK, parameters).fetchall()]

    parts = at_once_or_apart(
        lambda: give_back(None),
        lambda: [held.job_id for held in held_jobs(connection, worker_id)],
        give_back,
        lambda _job_id, _error: None,
        turn_s=GIVE_BACK_S,
    )
    connection.execute(_END_LEASE, {"worker_id": worker_id})
    return [job_id for part in parts for job_id in part]


def expire_process(connection: DictConnection, *, hostname: str, pid: int) -> int:
    """End the leases of a process seen dead, so that the reaper needn't wait. Returns how many."""
    return connection.execute(_EXPIRE_PROCESS, {"hostname": hostname, "pid": pid}).rowcount


def list_live(connection: DictConnection) -> list[dict[str, Any]]:
    """Live leases with the age of their last beat."""
    return connection.execute(
        "SELECT *, extract(epoch FROM now() - beat_at)::float AS beat_age_s FROM worker_leases"
        " WHERE expires_at > now() ORDER BY started_at"
    ).fetchall()


def refusals_of(leases: Collection[Mapping[str, Any]]) -> dict[str, str]:
    """Models that no lease of their pool serves and one refuses, with its reason."""
    served = {(lease["pool"], model) for lease in leases for model in lease["models"]}
    return {
        model: reason
        for lease in leases
        for model, reason in lease["refused"].items()
        if (lease["pool"], model) not in served
    }


async def live_workers(pool: AsyncPool) -> list[dict[str, Any]]:
    """Pool, models and refused models of every live inference worker, for readiness."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT pool, models, refused FROM worker_leases WHERE expires_at > now()"
        )
        return await cursor.fetchall()
