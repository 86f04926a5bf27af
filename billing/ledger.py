"""The ledger: money in, corrections, and the proof that the books are sound."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import IsolationLevel

from store.batch_turns import wake_for_credit
from store.ledger import (
    CASH,
    REVENUE,
    EntryKind,
    Finding,
    LedgerEntry,
    Transfer,
    entry_by_key,
    run_checks,
    transfer,
    usage_entry_of,
)
from store.pools import DictConnection
from tasks.errors import IdempotencyKeyReused, InvalidRequest

VERIFY_TIMEOUT_MS = 600_000  # the checks read every entry ever made


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The result of every check."""

    checks: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no check found anything."""
        return not any(check.num_violations for check in self.checks)

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps({"ok": self.ok, "checks": [_as_dict(check) for check in self.checks]})


def top_up(connection: DictConnection, tenant_id: UUID, micros: int, idem_key: str) -> LedgerEntry:
    """Credit money a tenant paid. The same key again returns the first entry.

    Raises InvalidRequest (no account, amount not positive), IdempotencyKeyReused.
    """
    if micros <= 0:
        raise InvalidRequest("A top-up is a positive amount.")
    entry = _move_once(
        connection,
        Transfer(
            kind=EntryKind.TOPUP,
            tenant_id=tenant_id,
            amount_micros=micros,
            counter_account=CASH,
            idem_key=f"topup:{tenant_id}:{idem_key}",
        ),
    )
    wake_for_credit(connection, tenant_id)
    return entry


def adjust(connection: DictConnection, tenant_id: UUID, micros: int, idem_key: str) -> LedgerEntry:
    """Correct a balance, up or down, against revenue. Idempotent and raises as `top_up`."""
    if micros == 0:
        raise InvalidRequest("An adjustment is not zero.")
    return _move_once(
        connection,
        Transfer(
            kind=EntryKind.ADJUST,
            tenant_id=tenant_id,
            amount_micros=micros,
            counter_account=REVENUE,
            idem_key=f"adjust:{tenant_id}:{idem_key}",
        ),
    )


def entry_for_job(connection: DictConnection, job_id: UUID) -> LedgerEntry | None:
    """What a job was charged; None until it is settled."""
    return usage_entry_of(connection, job_id)


def verify(connection: DictConnection) -> VerifyReport:
    """Recompute the books from their entries, in one snapshot, while settling goes on.

    Needs the owner's or billing's connection, outside a transaction.
    """
    before = connection.isolation_level
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    try:
        with connection.transaction():
            connection.execute(f"SET LOCAL statement_timeout = {VERIFY_TIMEOUT_MS}")
            return VerifyReport(tuple(run_checks(connection)))
    finally:
        connection.isolation_level = before


def _move_once(connection: DictConnection, move: Transfer) -> LedgerEntry:
    entry = transfer(connection, move) or entry_by_key(connection, move.idem_key)
    if entry is None:
        raise InvalidRequest("This tenant has no account.")
    if (entry.kind, entry.amount_micros) != (move.kind, abs(move.amount_micros)) or (
        _is_credit(entry) != (move.amount_micros > 0)
    ):
        raise IdempotencyKeyReused
    return entry


def _is_credit(entry: LedgerEntry) -> bool:
    return entry.credit_account == f"tenant:{entry.tenant_id}"


def _as_dict(check: Finding) -> dict[str, Any]:
    examples = [{key: _plain(value) for key, value in row.items()} for row in check.examples]
    return {"name": check.name, "num_violations": check.num_violations, "examples": examples}


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int | str) else str(value)
