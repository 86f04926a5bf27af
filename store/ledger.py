"""Ledger entries: append-only, double entry. Each row moves an amount from its debit account to its
credit account; a tenant's balance is what came in less what went out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from store.pools import DictConnection

CASH = "platform:cash"  # what tenants paid in
REVENUE = "platform:revenue"  # what they used


class EntryKind(StrEnum):
    """Why money moved. Stored."""

    TOPUP = "topup"  # a tenant paid
    USAGE = "usage"  # one job; the only kind that names a job
    ADJUST = "adjust"  # an operator's correction, either way
    REFUND = "refund"


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One row of the ledger."""

    id: int
    kind: str
    tenant_id: UUID
    job_id: UUID | None
    debit_account: str
    credit_account: str
    amount_micros: int
    currency: str
    price_version: int | None
    idem_key: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Money to move into a tenant's account, or out of it if `amount_micros` is negative."""

    kind: EntryKind
    tenant_id: UUID
    amount_micros: int
    counter_account: str
    idem_key: str


# The account row is locked first, so that two calls with one key can't both find no entry. The
# amount of an entry is never negative: its direction says which way the money went.
_TRANSFER = """
WITH account AS (
    SELECT tenant_id, currency FROM accounts WHERE tenant_id = %(tenant_id)s FOR UPDATE
), entry AS (
    INSERT INTO ledger_entries (kind, tenant_id, debit_account, credit_account, amount_micros,
        currency, idem_key)
    SELECT %(kind)s, tenant_id, %(debit)s, %(credit)s, abs(%(amount)s::bigint), currency,
        %(idem_key)s
    FROM account ON CONFLICT (idem_key) DO NOTHING RETURNING *
), moved AS (
    UPDATE accounts a SET balance_micros = a.balance_micros + %(amount)s
    FROM entry WHERE a.tenant_id = entry.tenant_id
)
SELECT * FROM entry
"""

_BY_KEY = "SELECT * FROM ledger_entries WHERE idem_key = %s"
_OF_JOB = "SELECT * FROM ledger_entries WHERE job_id = %s AND kind = 'usage'"


def transfer(connection: DictConnection, move: Transfer) -> LedgerEntry | None:
    """Move money once. None: an entry with this key exists, or the tenant has no account."""
    own = tenant_account(move.tenant_id)
    is_credit = move.amount_micros >= 0
    parameters = {
        "kind": move.kind.value,
        "tenant_id": move.tenant_id,
        "debit": move.counter_account if is_credit else own,
        "credit": own if is_credit else move.counter_account,
        "amount": move.amount_micros,
        "idem_key": move.idem_key,
    }
    return _entry(connection.execute(_TRANSFER, parameters).fetchone())


def entry_by_key(connection: DictConnection, idem_key: str) -> LedgerEntry | None:
    """The entry made under an idempotency key."""
    return _entry(connection.execute(_BY_KEY, (idem_key,)).fetchone())


def usage_entry_of(connection: DictConnection, job_id: UUID) -> LedgerEntry | None:
    """The one usage entry of a job; None until it is settled."""
    return _entry(connection.execute(_OF_JOB, (job_id,)).fetchone())


def tenant_account(tenant_id: UUID) -> str:
    """The name of a tenant's account in the ledger."""
    return f"tenant:{tenant_id}"


def _entry(row: dict[str, Any] | None) -> LedgerEntry | None:
    return LedgerEntry(**row) if row else None


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check of the books found."""

    name: str
    num_violations: int
    examples: tuple[dict[str, Any], ...]


# Each query lists the rows that break one rule; sound books give none. Outcomes and jobs are kept
# for some months only, so rules on them speak of those still there; usage and ledger stay for ever.
# The outcome of a job that has just ended may not be settled yet: that breaks no rule.
CHECKS: dict[str, str] = {
    "balance_is_sum_of_entries": """
        SELECT a.tenant_id, a.balance_micros, coalesce(s.total, 0)::bigint AS entries_micros
        FROM accounts a LEFT JOIN (
            SELECT tenant_id, sum(CASE 'tenant:' || tenant_id WHEN credit_account THEN amount_micros
                WHEN debit_account THEN -amount_micros END) AS total
            FROM ledger_entries GROUP BY tenant_id
        ) s ON s.tenant_id = a.tenant_id
        WHERE a.balance_micros <> coalesce(s.total, 0)""",
    "entry_names_its_tenants_account_once": """
        SELECT id, tenant_id, debit_account, credit_account FROM ledger_entries
        WHERE (debit_account = 'tenant:' || tenant_id) = (credit_account = 'tenant:' || tenant_id)
            OR debit_account LIKE 'tenant:%' AND credit_account LIKE 'tenant:%'""",
    "entry_is_in_the_accounts_currency": """
        SELECT e.id, e.currency, a.currency AS account_currency
        FROM ledger_entries e JOIN accounts a ON a.tenant_id = e.tenant_id
        WHERE e.currency <> a.currency""",
    "held_is_sum_of_reservations": """
        SELECT a.tenant_id, a.held_micros, coalesce(r.total, 0)::bigint AS reserved_micros
        FROM accounts a LEFT JOIN (
            SELECT tenant_id, sum(amount_micros) AS total FROM reservations WHERE state = 'held'
            GROUP BY tenant_id
        ) r ON r.tenant_id = a.tenant_id
        WHERE a.held_micros <> coalesce(r.total, 0)""",
    "usage_and_ledger_agree_per_job": """
        SELECT coalesce(u.job_id, e.job_id) AS job_id, u.amount_micros AS usage_micros,
            e.amount_micros AS ledger_micros
        FROM usage u FULL JOIN (SELECT * FROM ledger_entries WHERE kind = 'usage') e
            ON e.job_id = u.job_id
        WHERE u.amount_micros IS DISTINCT FROM e.amount_micros
            OR u.tenant_id IS DISTINCT FROM e.tenant_id""",
    "settled_job_has_usage": """
        SELECT o.job_id FROM job_outcomes o LEFT JOIN usage u ON u.job_id = o.job_id
        WHERE o.settled_at IS NOT NULL AND u.job_id IS NULL""",
    "unsettled_job_has_no_usage": """
        SELECT o.job_id FROM job_outcomes o JOIN usage u ON u.job_id = o.job_id
        WHERE o.settled_at IS NULL""",
    "no_outcome_is_set_aside": """
        SELECT job_id, settle_fails, settle_error FROM job_outcomes
        WHERE settled_at IS NULL AND settle_error IS NOT NULL""",
    "finished_job_has_an_outcome": """
        SELECT j.id AS job_id, j.status FROM jobs j LEFT JOIN job_outcomes o ON o.job_id = j.id
        WHERE j.finished_at IS NOT NULL AND o.job_id IS NULL""",
    "unfinished_job_has_no_outcome": """
        SELECT j.id AS job_id FROM jobs j JOIN job_outcomes o ON o.job_id = j.id
        WHERE j.finished_at IS NULL""",
    "amount_follows_from_frozen_prices": """
        SELECT u.job_id, u.amount_micros, c.cost AS cost_micros, r.amount_micros AS reserved_micros
        FROM usage u JOIN job_outcomes o ON o.job_id = u.job_id
        LEFT JOIN reservations r ON r.job_id = u.job_id
        CROSS JOIN LATERAL (SELECT CASE WHEN o.payer = 'tenant' THEN cost_micros(o.input_tokens,
            o.cached_tokens, o.output_tokens, o.input_price, o.cached_price, o.output_price)
            ELSE 0 END AS cost) c
        WHERE u.amount_micros <> least(c.cost, coalesce(r.amount_micros, 0))""",
    "charge_fits_its_reservation": """
        SELECT u.job_id, u.amount_micros, r.amount_micros AS reserved_micros, r.state
        FROM usage u JOIN reservations r ON r.job_id = u.job_id
        WHERE r.settled_micros IS DISTINCT FROM u.amount_micros""",
    "only_the_tenants_jobs_are_charged": """
        SELECT job_id, status, payer, amount_micros FROM usage
        WHERE amount_micros > 0 AND (payer <> 'tenant' OR status = 'failed')""",
}

NUM_EXAMPLES = 5


def run_check(connection: DictConnection, name: str) -> Finding:
    """Count the rows that break a rule and show the first ones."""
    rows = connection.execute(
        f"SELECT v.*, count(*) OVER () AS num_violations FROM ({CHECKS[name]}) v"
        f" LIMIT {NUM_EXAMPLES}"
    ).fetchall()
    count = rows[0]["num_violations"] if rows else 0
    examples = tuple({k: v for k, v in row.items() if k != "num_violations"} for row in rows)
    return Finding(name, count, examples)


def run_checks(connection: DictConnection) -> Iterable[Finding]:
    """All checks, one after the other. The caller opens the transaction they share."""
    for name in CHECKS:
        yield run_check(connection, name)
