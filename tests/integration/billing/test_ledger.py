"""The ledger: append-only, idempotent, and able to prove itself."""

from __future__ import annotations

import json
from uuid import UUID, uuid4

import psycopg
import pytest

from billing import ledger
from billing.usage import settle_jobs
from store.reservations import release_orphans
from tasks.errors import IdempotencyKeyReused, InvalidRequest
from tests.support.poison import refuse
from tests.support.roles import Connections
from tests.support.rows import Rows


def test_a_top_up_with_the_same_key_counts_once(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant(credit_micros=100)

    first = ledger.top_up(roles.owner, tenant, 50, "order-1")
    again = ledger.top_up(roles.owner, tenant, 50, "order-1")

    assert first == again
    assert rows.account(tenant) == (150, 0)
    assert ledger.verify(roles.owner).ok


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

    assert (up.amount_micros, up.credit_account) == (30, f"tenant:{tenant}")
    assert (down.amount_micros, down.debit_account) == (20, f"tenant:{tenant}")
    assert rows.account(tenant) == (110, 0)
    assert ledger.verify(roles.owner).ok


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


def test_a_reservation_whose_job_never_was_is_released(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant(credit_micros=500)
    rows.reserve(uuid4(), tenant, 70)

    too_young = release_orphans(roles.billing)
    released = release_orphans(roles.billing, older_than_s=0)

    assert (too_young, released) == (0, 1)
    assert rows.account(tenant) == (500, 0)


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
