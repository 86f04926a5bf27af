"""Whose turn it is: batches are worked on in small steps, each under a lease of its own.

When a batch is due stands in its row, so that one with nothing to do costs nothing until then, and
any driver may do the next step. A step that ends says when the next one is; one that doesn't, since
its process died, counts as a failed try once its lease is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from psycopg import Error
from psycopg.types.json import Jsonb

from store.apart import apart
from store.faults import is_units
from store.pools import DictConnection

LEASE_S = 15.0
MAX_DUE = 1_000  # looked at for a round; those that wait longest

BatchRow = dict[str, Any]

LIVE = "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"
OWNED = "id = %(id)s AND owner = %(owner)s"
_DUE_NOW = f"{LIVE} AND next_step_at <= now() AND (owner IS NULL OR leased_until < now())"

_DUE = f"""
SELECT id FROM (
    SELECT DISTINCT ON (tenant_id) id, next_step_at FROM (
        SELECT id, tenant_id, next_step_at FROM batches
        WHERE {_DUE_NOW} AND id <> ALL(%(aside)s::uuid[]) ORDER BY next_step_at LIMIT {MAX_DUE}
    ) due ORDER BY tenant_id, next_step_at
) heads ORDER BY next_step_at
"""

# A step that is just about to commit holds the row, and needs no more time.
_RENEW = f"""
UPDATE batches SET leased_until = now() + interval '{LEASE_S} seconds'
WHERE id = (SELECT id FROM batches WHERE {OWNED} FOR UPDATE SKIP LOCKED)
"""

_LEASE = f"""
UPDATE batches b SET owner = %(owner)s, leased_until = now() + interval '{LEASE_S} seconds',
    num_tries = b.num_tries + CASE WHEN due.is_unfinished THEN 1 ELSE 0 END
FROM (
    SELECT id, owner IS NOT NULL AS is_unfinished FROM batches
    WHERE id = %(id)s AND {_DUE_NOW} FOR UPDATE SKIP LOCKED
) due
WHERE b.id = due.id
RETURNING b.*, due.is_unfinished, expires_at < now() AS is_late,
    extract(epoch FROM expires_at - now())::float8 AS remaining_s
"""

# A cancel that came during the step is not slept over, nor is the end of the batch's window.
_RELEASE = f"""
UPDATE batches SET owner = NULL, leased_until = NULL, waits_for = %(waits_for)s,
    num_pauses = %(num_pauses)s, num_tries = %(num_tries)s,
    next_step_at = CASE WHEN status <> %(status)s THEN now() ELSE least(
        now() + make_interval(secs => %(pause_s)s),
        greatest(expires_at, now() + make_interval(secs => least(%(pause_s)s, 1)))
    ) END
WHERE {OWNED}
"""

_WAITS_FOR_CREDIT = f"""
SELECT id FROM batches
WHERE tenant_id = %s AND {LIVE} AND waits_for ->> 'code' = 'insufficient_quota'
"""

_WAKE = "UPDATE batches SET next_step_at = now() WHERE id = ANY(%s)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """When a batch is due again, and why not at once."""

    pause_s: float
    num_pauses: int = 0
    num_tries: int = 0
    waits_for: dict[str, Any] | None = None


def due(connection: DictConnection, *, aside: Sequence[UUID] = ()) -> list[UUID]:
    """A round: of each tenant the batch that waits longest, whoever waits longest first. Those set
    aside have no turn.
    """
    return [row["id"] for row in connection.execute(_DUE, {"aside": list(aside)}).fetchall()]


def lease(connection: DictConnection, batch_id: UUID) -> BatchRow | None:
    """A batch for one step, by a new `owner`, which fences all that the step writes.

    None: it is not due any more, or somebody else's. `is_unfinished`: the last step never ended.
    """
    return connection.execute(_LEASE, {"id": batch_id, "owner": uuid4()}).fetchone()


def renew(connection: DictConnection, batch: BatchRow) -> None:
    """Its step takes longer. Nothing if it is another's by now."""
    connection.execute(_RENEW, {"id": batch["id"], "owner": batch["owner"]})


def release(connection: DictConnection, batch: BatchRow, rest: Rest) -> None:
    """The step is over. Nothing if the batch is another's by now, or ended."""
    connection.execute(
        _RELEASE,
        {
            "id": batch["id"],
            "owner": batch["owner"],
            "status": batch["status"],
            "pause_s": rest.pause_s,
            "num_pauses": rest.num_pauses,
            "num_tries": rest.num_tries,
            "waits_for": None if rest.waits_for is None else Jsonb(rest.waits_for),
        },
    )


def wake_for_credit(connection: DictConnection, tenant_id: UUID) -> None:
    """A tenant has paid: its batches that wait for credit are due. One that can't be woken has its
    turn when its pause is over. Raises in an outage alone: what was paid is booked already.
    """
    try:
        _wake(connection, tenant_id)
    except Error as error:
        if not is_units(error):
            raise


def _wake(connection: DictConnection, tenant_id: UUID) -> None:
    rows = connection.execute(_WAITS_FOR_CREDIT, (tenant_id,)).fetchall()
    apart(
        [row["id"] for row in rows],
        lambda some: connection.execute(_WAKE, (list(some),)),
        lambda _batch_id, _error: None,
    )
