"""The ledger: append-only, idempotent, and able to prove itself."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from billing import ledger, metrics
from billing.ledger import VerifyReport
from billing.usage import expire_reservations, settle_jobs
from cli.stack.database import DatabaseUrls
from store.batch_turns import due
from store.ledger import Finding
from store.pools import DictConnection, connect
from store.reservations import release_orphans
from tasks.errors import IdempotencyKeyReused, InvalidRequest
from tests.integration.batches.test_batch_driving import _batch
from tests.support.poison import refuse
from tests.support.roles import Connections
from tests.support.rows import Rows


def test_a_top_up_with_the_same_key_counts_once(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant(credit_micros=100)

    first = ledger.top_up(roles.owner, tenant, 1, "order-1")
    again = ledger.top_up(roles.owner, tenant, 1, "order-1")

    assert first == again
    assert rows.account(tenant) == (101, 0)
    assert ledger.verify(roles.owner).ok


def test_top_ups_with_one_key_at_the_same_time_count_once(
    database: DatabaseUrls, rows: Rows
) -> None:
    tenant = rows.tenant(credit_micros=100)

    def pay(_: int) -> int:
        with connect(database.owner, application_name="test") as connection:
            return ledger.top_up(connection, tenant, 50, "order-1").id

    with ThreadPoolExecutor(4) as threads:
        ids = list(threads.map(pay, range(8)))

    assert len(set(ids)) == 1
    assert rows.account(tenant) == (150, 0)


def test_a_top_up_wakes_the_batches_that_wait_for_credit(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant(credit_micros=0)
    batch = _batch(rows, tenant)
    rows.connection.execute(
        "UPDATE batches SET next_step_at = now() + interval '1 hour',"
        ' waits_for = \'{"code": "insufficient_quota"}\''
    )
    before = due(roles.worker)

    ledger.top_up(roles.owner, tenant, 50, "order-1")

    assert (before, due(roles.worker)) == ([], [batch])


def test_a_top_up_key_used_for_another_amount_is_refused(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant(credit_micros=0)
    ledger.top_up(roles.owner, tenant, 50, "order-1")

    with pytest.raises(IdempotencyKeyReused):
        ledger.top_up(roles.owner, tenant, 60, "order-1")

    assert rows.account(tenant) == (50, 0)


def test_two_tenants_may_use_the_same_key(roles: Connections, rows: Rows) -> None:
    tenants = [rows.tenant(credit_micros=0) for _ in range(2)]

    for tenant in tenants:
        ledger.top_up(roles.owner, tenant, 50, "order-1")

    assert [rows.account(tenant) for tenant in tenants] == [(50, 0)] * 2


@pytest.mark.parametrize("micros", [0, -5])
def test_a_top_up_that_is_not_positive_is_refused(
    roles: Connections, rows: Rows, micros: int
) -> None:
    with pytest.raises(InvalidRequest):
        ledger.top_up(roles.owner, rows.tenant(), micros, "order-1")


def test_a_top_up_without_an_account_is_refused(roles: Connections) -> None:
    with pytest.raises(InvalidRequest):
        ledger.top_up(roles.owner, uuid4(), 5, "order-1")


def test_an_adjustment_goes_either_way(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant(credit_micros=100)

    up = ledger.adjust(roles.billing, tenant, 30, "goodwill")
    down = ledger.adjust(roles.billing, tenant, -20, "mistake")

    own = f"tenant:{tenant}"
    assert (up.debit_account, up.credit_account) == ("platform:revenue", own)
    assert (down.debit_account, down.credit_account) == (own, "platform:revenue")
    assert (up.amount_micros, down.amount_micros) == (30, 20)
    assert rows.account(tenant) == (110, 0)
    assert ledger.verify(roles.owner).ok


@pytest.mark.parametrize("micros", [1, -1])
def test_an_adjustment_with_the_same_key_counts_once(
    roles: Connections, rows: Rows, micros: int
) -> None:
    tenant = rows.tenant(credit_micros=100)

    entries = [ledger.adjust(roles.billing, tenant, micros, "again") for _ in range(2)]

    assert entries[0] == entries[1]
    assert rows.account(tenant) == (100 + micros, 0)


def test_an_adjustment_by_nothing_is_refused(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant(credit_micros=100)

    with pytest.raises(InvalidRequest):
        ledger.adjust(roles.billing, tenant, 0, "nothing")


def test_an_adjustment_key_used_the_other_way_is_refused(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant(credit_micros=100)
    ledger.adjust(roles.billing, tenant, 30, "goodwill")

    with pytest.raises(IdempotencyKeyReused):
        ledger.adjust(roles.billing, tenant, -30, "goodwill")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_entries SET amount_micros = 0",
        "DELETE FROM ledger_entries",
        "TRUNCATE ledger_entries",
        "UPDATE usage SET amount_micros = 0",
        "DELETE FROM usage",
        "TRUNCATE usage",
    ],
)
def test_what_is_written_stays_written_even_for_the_owner(
    roles: Connections, rows: Rows, statement: str
) -> None:
    rows.ended_job(rows.tenant())
    settle_jobs(roles.billing)

    with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
        roles.owner.execute(statement.encode())


@pytest.mark.parametrize(
    ("statement", "check"),
    [
        ("UPDATE accounts SET balance_micros = balance_micros + 1", "balance_is_sum_of_entries"),
        ("UPDATE accounts SET held_micros = held_micros + 1", "held_is_sum_of_reservations"),
        (
            "UPDATE reservations SET state = 'held', settled_micros = NULL, resolved_at = NULL",
            "charge_fits_its_reservation",
        ),
        ("UPDATE job_outcomes SET settled_at = NULL", "unsettled_job_has_no_usage"),
        ("DELETE FROM job_outcomes", "finished_job_has_an_outcome"),
        ("UPDATE jobs SET status = 'queued', finished_at = NULL", "unfinished_job_has_no_outcome"),
        ("UPDATE job_outcomes SET output_price = 7", "amount_follows_from_frozen_prices"),
        ("UPDATE accounts SET currency = 'EUR'", "entry_is_in_the_accounts_currency"),
        ("UPDATE usage SET amount_micros = 1", "usage_and_ledger_agree_per_job"),
        ("UPDATE usage SET payer = 'platform'", "only_the_tenants_jobs_are_charged"),
        ("DELETE FROM usage", "settled_job_has_usage"),
        ("UPDATE ledger_entries SET amount_micros = 1", "balance_is_sum_of_entries"),
        (
            "UPDATE ledger_entries SET debit_account = 'platform:cash' WHERE kind = 'usage'",
            "entry_names_its_tenants_account_once",
        ),
    ],
)
def test_verify_names_what_is_wrong(
    roles: Connections, rows: Rows, statement: str, check: str
) -> None:
    rows.ended_job(rows.tenant())
    settle_jobs(roles.billing)

    for table in ("usage", "ledger_entries"):  # as somebody with the owner's password could
        roles.owner.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER".encode())
    roles.owner.execute(statement.encode())
    report = ledger.verify(roles.owner)

    findings = {finding.name: finding for finding in report.checks if finding.num_violations}
    assert not report.ok
    assert check in findings
    assert findings[check].examples
    assert json.loads(report.to_json())["ok"] is False


def test_verify_shows_the_first_violations_and_counts_all(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant()
    for _ in range(12):
        rows.ended_job(tenant)
    roles.owner.execute("UPDATE job_outcomes SET settled_at = now()")

    report = ledger.verify(roles.owner)

    [finding] = [finding for finding in report.checks if finding.num_violations]
    assert finding.name == "settled_job_has_usage"
    assert finding.num_violations == 12
    assert len(finding.examples) == 5


def test_all_checks_see_the_books_of_one_moment_and_may_take_long(
    roles: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def look(connection: DictConnection) -> list[Finding]:
        settings = ("transaction_isolation", "statement_timeout")
        rows = [connection.execute(f"SHOW {name}".encode()).fetchone() for name in settings]
        seen.extend(value for row in rows if row for value in row.values())
        return []

    monkeypatch.setattr(ledger, "run_checks", look)
    before = roles.owner.execute("SHOW statement_timeout").fetchone()

    assert ledger.verify(roles.owner).ok

    assert seen == ["repeatable read", "10min"]
    assert roles.owner.isolation_level is None
    assert roles.owner.execute("SHOW statement_timeout").fetchone() == before


def test_a_report_is_one_object_of_plain_values() -> None:
    row = {"job_id": UUID(int=1), "amount_micros": 7, "state": "held", "cost_micros": None}
    report = VerifyReport((Finding("good", 0, ()), Finding("bad", 9, (row,))))

    assert json.loads(report.to_json()) == {
        "ok": False,
        "checks": [
            {"name": "good", "num_violations": 0, "examples": []},
            {"name": "bad", "num_violations": 9, "examples": [row | {"job_id": str(UUID(int=1))}]},
        ],
    }


def test_reservations_that_no_settling_resolves_are_counted_and_reported(
    roles: Connections, rows: Rows, database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_DATABASE_URL_BILLING", database.billing)
    counted, before = metrics.ORPHAN_RESERVATION._value.get, metrics.ORPHAN_RESERVATION._value.get()
    rows.reserve(uuid4(), rows.tenant(), 70)
    reports = []

    for change in ("created_at = created_at", "created_at = now() - interval '30 days'"):
        rows.connection.execute(f"UPDATE reservations SET {change}".encode())
        with capture_logs() as logs:
            expire_reservations.apply(throw=True)
        reports.append(([entry["event"] for entry in logs], counted() - before))

    assert reports == [([], 0), (["orphan_reservations_released"], 1)]


def test_a_reservation_whose_job_never_was_is_released(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant(credit_micros=500)
    rows.reserve(uuid4(), tenant, 70)

    too_young = release_orphans(roles.billing)
    released = release_orphans(roles.billing, older_than_s=0)

    assert (too_young, released) == (0, 1)
    assert rows.account(tenant) == (500, 0)


def test_an_orphan_in_the_middle_of_a_backlog_is_met_in_some_run(
    roles: Connections, rows: Rows
) -> None:
    """A run of two looks at the oldest, and at the first from a moment drawn anew each time on."""
    tenant = rows.tenant(credit_micros=5_000)
    orphan = uuid4()
    rows.reserve(orphan, tenant, 70)
    open_jobs = [rows.job(tenant) for _ in range(3)]
    for job, hours in zip((*open_jobs, orphan), (100, 99, 1, 10), strict=True):
        rows.connection.execute(
            "UPDATE reservations SET created_at = now() - make_interval(hours => %s)"
            " WHERE job_id = %s",
            (hours, job),
        )
    roles.billing.execute("SELECT setseed(0.5)")

    released = [release_orphans(roles.billing, limit=1) for _ in range(10)]

    assert sum(released) == 1


def test_a_reservation_that_can_not_be_released_keeps_no_other_held(
    roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant(credit_micros=500)
    jobs = sorted(uuid4() for _ in range(5))
    for job in jobs:
        rows.reserve(job, tenant, 70)
    refuse(roles.owner, "reservations", "job_id", jobs[2])
    left: list[UUID] = []

    released = release_orphans(
        roles.billing, older_than_s=0, set_aside=lambda job_id, _: left.append(job_id)
    )

    assert (released, left) == (4, [jobs[2]])
    assert rows.account(tenant) == (500, 70)


def test_the_reservation_of_an_open_or_unsettled_job_is_kept(
    roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant()
    rows.job(tenant)
    rows.ended_job(tenant)

    assert release_orphans(roles.billing, older_than_s=0) == 0
