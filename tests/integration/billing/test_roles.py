"""What each database role may do with money, and whose rows the API sees."""

from __future__ import annotations

from uuid import UUID

import psycopg
import pytest

from billing.usage import settle_jobs
from store.pools import SET_TENANT, DictConnection
from tests.support.roles import Connections
from tests.support.rows import Rows

TENANT_TABLES = [
    "jobs",
    "job_outcomes",
    "accounts",
    "reservations",
    "usage",
    "ledger_entries",
]

MONEY_WRITES = [
    "INSERT INTO ledger_entries (kind, tenant_id, debit_account, credit_account, amount_micros,"
    " currency, idem_key) SELECT 'topup', tenant_id, 'platform:cash', 'tenant:x', 1, 'USD', 'k'"
    " FROM accounts",
    "INSERT INTO usage SELECT * FROM usage",
    "UPDATE accounts SET balance_micros = balance_micros + 1",
    "UPDATE accounts SET credit_limit_micros = 1",
    "UPDATE reservations SET state = 'released', settled_micros = 0, resolved_at = now()",
    "DELETE FROM reservations",
    "UPDATE job_outcomes SET output_tokens = 0",
    "DELETE FROM ledger_entries",
    "UPDATE prices SET output_micros = 0",
]


@pytest.mark.parametrize("statement", MONEY_WRITES)
def test_the_api_can_not_touch_money(roles: Connections, rows: Rows, statement: str) -> None:
    tenant = rows.tenant()
    rows.ended_job(tenant)
    settle_jobs(roles.billing)

    roles.api.execute("SELECT set_config('app.tenant_id', %s, false)", (str(tenant),))

    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        roles.api.execute(statement.encode())


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO usage SELECT * FROM usage",
        "UPDATE accounts SET balance_micros = 0",
        "UPDATE accounts SET held_micros = 0",
        "UPDATE reservations SET state = 'released'",
    ],
)
def test_a_worker_can_not_touch_money(roles: Connections, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        roles.worker.execute(statement.encode())


@pytest.mark.parametrize("statement", ["UPDATE jobs SET status = 'failed'", "DELETE FROM usage"])
def test_billing_can_not_change_jobs_or_history(roles: Connections, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        roles.billing.execute(statement.encode())


def _seen_by(api: DictConnection, tenant: UUID | None, table: str) -> set[UUID]:
    with api.transaction():
        if tenant is not None:
            api.execute(SET_TENANT, (str(tenant),))
        found = api.execute(f"SELECT DISTINCT tenant_id FROM {table}".encode()).fetchall()
    return {row["tenant_id"] for row in found}


@pytest.mark.parametrize("table", TENANT_TABLES)
def test_the_api_sees_one_tenants_rows_and_none_without_a_tenant(
    roles: Connections, rows: Rows, table: str
) -> None:
    ours, theirs = rows.tenant(), rows.tenant()
    for tenant in (ours, theirs):
        rows.ended_job(tenant)
    settle_jobs(roles.billing)

    assert _seen_by(roles.api, ours, table) == {ours}
    assert _seen_by(roles.api, theirs, table) == {theirs}
    assert _seen_by(roles.api, None, table) == set()


def test_the_api_can_not_write_rows_of_another_tenant(roles: Connections, rows: Rows) -> None:
    ours, theirs = rows.tenant(), rows.tenant()
    job = rows.job(theirs)

    with roles.api.transaction():
        roles.api.execute(SET_TENANT, (str(ours),))
        cancelled = roles.api.execute(
            "UPDATE jobs SET cancel_requested_at = now() WHERE id = %s", (job,)
        )
        held = roles.api.execute(
            "UPDATE accounts SET held_micros = 0 WHERE tenant_id = %s", (theirs,)
        )

    assert (cancelled.rowcount, held.rowcount) == (0, 0)
    roles.api.execute("SELECT set_config('app.tenant_id', %s, false)", (str(ours),))
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        roles.api.execute(
            "INSERT INTO idempotency_keys (tenant_id, key, request_hash, job_id)"
            " VALUES (%s, 'key', '', %s)",
            (theirs, job),
        )


def test_a_tenant_named_in_one_transaction_is_gone_in_the_next(
    roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant()
    with roles.api.transaction():
        roles.api.execute(SET_TENANT, (str(tenant),))

    assert _seen_by(roles.api, None, "accounts") == set()
