"""Job outcomes: the outbox that the end of a job fills and billing empties, and its settling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from store.pools import DictConnection

# One statement, so a crash at any point leaves all of it or nothing.
#
# - Each outcome is settled by one settler: locked rows are skipped, and settled ones fall out when
#   their lock is got. Uniqueness holds without the locks too: the ledger admits one usage entry a
#   job, and money moves only for entries really inserted (`entered`).
# - A charge never exceeds its reservation; without one it is 0. Both are counted as anomalies.
# - Two CTEs are never joined where their rows are many: without statistics Postgres takes them for
#   small and compares each with each. `IN (SELECT ..)` is hashed.
# - Settlers take turns, by a lock held until they commit. So `usage.settled_seq` rises in the order
#   of commits, and who has read up to a number misses nothing below it.
# - Accounts are locked in the order of their ids, so settlers can't wait for each other in a ring.
_SETTLE = """
WITH turn AS MATERIALIZED (
    SELECT pg_advisory_xact_lock(%(turns)s)
), due AS MATERIALIZED (
    SELECT o.* FROM job_outcomes o CROSS JOIN turn
    WHERE settled_at IS NULL AND settle_fails < %(max_fails)s
        AND job_id <> ALL(%(aside)s::uuid[]){of_jobs}
    ORDER BY job_id LIMIT %(limit)s FOR UPDATE OF o SKIP LOCKED
), priced AS MATERIALIZED (
    SELECT d.*, r.amount_micros AS reserved, CASE WHEN d.payer = 'tenant'
        THEN cost_micros(d.input_tokens, d.cached_tokens, d.output_tokens, d.input_price,
            d.cached_price, d.output_price) ELSE 0 END AS cost
    FROM due d LEFT JOIN reservations r ON r.job_id = d.job_id AND r.state = 'held'
), charged AS MATERIALIZED (
    SELECT *, least(cost, coalesce(reserved, 0)) AS amount FROM priced
), used AS (
    INSERT INTO usage (job_id, tenant_id, api_key_id, model, service_tier, status, payer,
        input_tokens, cached_tokens, output_tokens, price_version, amount_micros, currency,
        created_at, end_user)
    SELECT job_id, tenant_id, api_key_id, model, service_tier, status, payer, input_tokens,
        cached_tokens, output_tokens, price_version, amount, currency, created_at, end_user
    FROM charged ON CONFLICT DO NOTHING
), entered AS (
    INSERT INTO ledger_entries (kind, tenant_id, job_id, debit_account, credit_account,
        amount_micros, currency, price_version, idem_key)
    SELECT 'usage', tenant_id, job_id, 'tenant:' || tenant_id, 'platform:revenue', amount, currency,
        price_version, 'usage:' || job_id
    FROM charged ON CONFLICT DO NOTHING RETURNING job_id, amount_micros
), resolved AS (
    UPDATE reservations r SET settled_micros = e.amount_micros, resolved_at = now(),
        state = CASE WHEN r.job_id IN (SELECT job_id FROM charged WHERE payer = 'tenant')
            THEN 'settled' ELSE 'released' END
    FROM entered e WHERE r.job_id = e.job_id AND r.state = 'held'
    RETURNING r.tenant_id, r.amount_micros, r.settled_micros
), totals AS (
    SELECT tenant_id, sum(settled_micros)::bigint AS spent, sum(amount_micros)::bigint AS freed
    FROM resolved GROUP BY tenant_id
), locked AS (
    SELECT tenant_id FROM accounts WHERE tenant_id IN (SELECT tenant_id FROM totals)
    ORDER BY tenant_id FOR UPDATE
), moved AS (
    UPDATE accounts a SET balance_micros = a.balance_micros - t.spent,
        held_micros = a.held_micros - t.freed
    FROM totals t JOIN locked l ON l.tenant_id = t.tenant_id WHERE a.tenant_id = t.tenant_id
), marked AS (
    UPDATE job_outcomes o SET settled_at = now() FROM due d WHERE o.job_id = d.job_id
)
SELECT count(*) AS num_settled, (SELECT count(*) FROM entered) AS num_entered,
    coalesce(array_agg(job_id) FILTER (WHERE cost > reserved), '{{}}') AS over_reservation,
    coalesce(array_agg(job_id) FILTER (
        WHERE reserved IS NULL AND job_id IN (SELECT job_id FROM entered)), '{{}}')
        AS without_reservation,
    coalesce(array_agg(job_id) FILTER (
        WHERE tenant_id IN (SELECT id FROM tenants WHERE tokens_per_min IS NOT NULL)
            AND job_id IN (SELECT job_id FROM entered)), '{{}}') AS rate_limited
FROM charged
"""

_OF_JOBS = " AND job_id = ANY(%(job_ids)s)"

_TURNS = 0x6D696C6C_73657474  # the key of the settlers' lock: "millsett"

_OLDEST_UNSETTLED = """
SELECT job_id FROM job_outcomes
WHERE settled_at IS NULL AND settle_fails < %s AND created_at < now() - make_interval(secs => %s)
ORDER BY job_id LIMIT 1
"""

_DUE = """
SELECT job_id FROM job_outcomes
WHERE settled_at IS NULL AND settle_fails < %s AND job_id <> ALL(%s::uuid[])
ORDER BY job_id LIMIT %s
"""

_NOTE_FAILED = """
UPDATE job_outcomes SET settle_fails = settle_fails + 1, settle_error = %s
WHERE job_id = %s AND settled_at IS NULL RETURNING settle_fails
"""

# Settled alone, an outcome that fails so often is set aside until an operator mends it: its
# reservation stays held, and `ledger verify` names it.
MAX_SETTLE_FAILS = 5


@dataclass(frozen=True, slots=True)
class Settled:
    """What one settling did."""

    num_settled: int
    num_entered: int  # of those, with a ledger entry that didn't exist before
    over_reservation: tuple[UUID, ...]  # jobs whose reservation was not as it must be
    without_reservation: tuple[UUID, ...]
    rate_limited: tuple[UUID, ...]  # jobs settled now, of tenants with a limit of tokens


def settle(
    connection: DictConnection,
    *,
    job_ids: Sequence[UUID] | None = None,
    limit: int,
    aside: Sequence[UUID] = (),
) -> Settled:
    """Settle these outcomes, or any, oldest first. Those already settled are left alone, and those
    set aside.
    """
    parameters = {
        "job_ids": None if job_ids is None else list(job_ids),
        "limit": limit,
        "aside": list(aside),
        "max_fails": MAX_SETTLE_FAILS,
        "turns": _TURNS,
    }
    statement = _SETTLE.format(of_jobs="" if job_ids is None else _OF_JOBS)
    row = connection.execute(statement.encode(), parameters).fetchone()
    assert row is not None
    return Settled(
        num_settled=row["num_settled"],
        num_entered=row["num_entered"],
        over_reservation=tuple(row["over_reservation"]),
        without_reservation=tuple(row["without_reservation"]),
        rate_limited=tuple(row["rate_limited"]),
    )


def due(connection: DictConnection, *, limit: int, aside: Sequence[UUID] = ()) -> list[UUID]:
    """Jobs whose outcomes wait, the oldest first, but for those set aside."""
    rows = connection.execute(_DUE, (MAX_SETTLE_FAILS, list(aside), limit)).fetchall()
    return [row["job_id"] for row in rows]


def note_not_settled(connection: DictConnection, job_id: UUID, error: str) -> bool:
    """An outcome could not be settled, though it was alone. True: it is set aside now."""
    row = connection.execute(_NOTE_FAILED, (error, job_id)).fetchone()
    return row is not None and row["settle_fails"] >= MAX_SETTLE_FAILS


def oldest_unsettled(connection: DictConnection, *, older_than_s: float) -> UUID | None:
    """A job whose outcome has waited longer than this."""
    row = connection.execute(_OLDEST_UNSETTLED, (MAX_SETTLE_FAILS, older_than_s)).fetchone()
    return row["job_id"] if row else None
