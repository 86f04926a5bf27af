"""The proof that the books are sound: what breaks a rule is named, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest

from billing import ledger
from billing.usage import settle_jobs
from store.ledger import run_checks
from tests.support.roles import Connections
from tests.support.rows import Rows


@dataclass(frozen=True)
class Books:
    """Sound ones. All jobs are of `one`."""

    one: UUID
    poor: UUID  # nothing ever moved
    other: UUID  # paid in, and used nothing
    paid: UUID
    free: UUID  # the platform pays
    mended: UUID  # could not be settled at first
    waiting: UUID  # not settled yet
    open: UUID


@pytest.fixture
def books(roles: Connections, rows: Rows) -> Books:
    one = rows.tenant(credit_micros=1_000)
    paid, mended = rows.ended_job(one), rows.ended_job(one)
    free = rows.ended_job(one, payer="platform")
    assert settle_jobs(roles.billing) == 3
    roles.owner.execute(
        "UPDATE job_outcomes SET settle_fails = 1, settle_error = 'no' WHERE job_id = %s", (mended,)
    )
    for table in ("usage", "ledger_entries"):  # as somebody with the owner's password could
        roles.owner.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER".encode())
    poor, other = rows.tenant(credit_micros=0), rows.tenant(credit_micros=7)
    waiting, is_open = rows.ended_job(one), rows.job(one)
    return Books(one, poor, other, paid, free, mended, waiting, is_open)


def _found(roles: Connections, books: Books, statement: str) -> dict[str, list[dict[str, Any]]]:
    """What the checks find while this is so."""
    with roles.owner.transaction(force_rollback=True):
        roles.owner.execute(statement.encode(), vars(books))
        findings = [finding for finding in run_checks(roles.owner) if finding.num_violations]
    assert all(finding.num_violations == len(finding.examples) for finding in findings)
    return {
        finding.name: sorted(finding.examples, key=lambda row: str(row.values()))
        for finding in findings
    }


def _entry(rows: Rows, column: str, value: UUID) -> int:
    return int(rows.one(f"SELECT id FROM ledger_entries WHERE {column} = %s", value)["id"])


def test_sound_books_break_no_rule(roles: Connections, books: Books) -> None:
    assert ledger.verify(roles.owner).ok


def test_a_balance_and_what_is_held_are_compared_with_what_they_are_made_of(
    roles: Connections, rows: Rows, books: Books
) -> None:
    balance, held = rows.account(books.one)
    assert (balance, held) == (1_000 - 2 * 120, 2 * 200)
    accounts = ((books.one, balance, held), (books.poor, 0, 0), (books.other, 7, 0))

    for column, check, sums in (
        ("balance_micros", "balance_is_sum_of_entries", "entries_micros"),
        ("held_micros", "held_is_sum_of_reservations", "reserved_micros"),
    ):
        for tenant, *amounts in accounts:
            amount = amounts[column == "held_micros"]
            statement = f"UPDATE accounts SET {column} = {column} + 1 WHERE tenant_id = '{tenant}'"
            row = {"tenant_id": tenant, column: amount + 1, sums: amount}
            assert _found(roles, books, statement) == {check: [row]}


def test_entries_name_their_tenants_account_once_and_are_in_its_currency(
    roles: Connections, rows: Rows, books: Books
) -> None:
    own, revenue = f"tenant:{books.one}", "platform:revenue"
    row = {"id": _entry(rows, "job_id", books.paid), "tenant_id": books.one}
    change = "UPDATE ledger_entries SET {} WHERE job_id = %(paid)s"

    neither = _found(roles, books, change.format("debit_account = 'platform:cash'"))
    two = _found(roles, books, change.format("credit_account = 'tenant:' || %(other)s::uuid"))
    euros = _found(roles, books, "UPDATE accounts SET currency = 'EUR' WHERE tenant_id = %(other)s")

    check = "entry_names_its_tenants_account_once"
    assert neither[check] == [row | {"debit_account": "platform:cash", "credit_account": revenue}]
    others = f"tenant:{books.other}"
    assert two == {check: [row | {"debit_account": own, "credit_account": others}]}
    entry = {
        "id": _entry(rows, "tenant_id", books.other),
        "currency": "USD",
        "account_currency": "EUR",
    }
    assert euros == {"entry_is_in_the_accounts_currency": [entry]}


def _differs(job: UUID, used: int | None, entered: int | None) -> dict[str, Any]:
    return {"job_id": job, "usage_micros": used, "ledger_micros": entered}


def test_usage_agrees_with_the_ledger_and_stands_for_what_is_settled(
    roles: Connections, books: Books
) -> None:
    agree = "usage_and_ledger_agree_per_job"
    cases: Mapping[str, Mapping[str, Any]] = {
        "DELETE FROM usage WHERE job_id = %(paid)s": {
            agree: [_differs(books.paid, None, 120)],
            "settled_job_has_usage": [{"job_id": books.paid}],
        },
        "DELETE FROM ledger_entries WHERE job_id = %(free)s": {
            agree: [_differs(books.free, 0, None)]
        },
        "UPDATE usage SET tenant_id = %(other)s WHERE job_id = %(free)s": {
            agree: [_differs(books.free, 0, 0)]
        },
        "UPDATE job_outcomes SET settled_at = NULL WHERE job_id = %(paid)s": {
            "unsettled_job_has_no_usage": [{"job_id": books.paid}]
        },
        "UPDATE job_outcomes SET settle_error = 'no' WHERE job_id = %(waiting)s": {
            "no_outcome_is_set_aside": [
                {"job_id": books.waiting, "settle_fails": 0, "settle_error": "no"}
            ]
        },
    }

    assert {each: _found(roles, books, each) for each in cases} == cases


def test_jobs_have_an_outcome_when_they_are_over_and_no_sooner(
    roles: Connections, books: Books
) -> None:
    gone = "DELETE FROM job_outcomes WHERE job_id IN (%(paid)s, %(waiting)s)"
    back = "UPDATE jobs SET status = 'queued', finished_at = NULL WHERE id = %(waiting)s"
    rows = [{"job_id": job, "status": "completed"} for job in (books.paid, books.waiting)]

    assert _found(roles, books, gone) == {"finished_job_has_an_outcome": rows}
    assert _found(roles, books, back) == {
        "unfinished_job_has_no_outcome": [{"job_id": books.waiting}]
    }


def test_a_charge_follows_from_its_prices_its_reservation_and_who_pays(
    roles: Connections, books: Books
) -> None:
    charge = {"job_id": books.paid, "amount_micros": 120}
    follows, fits, whose = (
        "amount_follows_from_frozen_prices",
        "charge_fits_its_reservation",
        "only_the_tenants_jobs_are_charged",
    )
    cases: Mapping[str, Mapping[str, Any]] = {
        "UPDATE job_outcomes SET output_price = 0 WHERE job_id = %(paid)s": {
            follows: [charge | {"cost_micros": 100, "reserved_micros": 200}]
        },
        "DELETE FROM reservations WHERE job_id = %(paid)s": {
            follows: [charge | {"cost_micros": 120, "reserved_micros": None}]
        },
        "UPDATE reservations SET settled_micros = 119 WHERE job_id = %(paid)s": {
            fits: [charge | {"reserved_micros": 200, "state": "settled"}]
        },
        "UPDATE usage SET payer = 'platform' WHERE job_id = %(paid)s": {
            whose: [charge | {"status": "completed", "payer": "platform"}]
        },
        "UPDATE usage SET status = 'failed' WHERE job_id = %(paid)s": {
            whose: [charge | {"status": "failed", "payer": "tenant"}]
        },
    }

    assert {each: _found(roles, books, each) for each in cases} == cases


def test_the_entry_of_a_job_is_its_own(roles: Connections, rows: Rows, books: Books) -> None:
    jobs = (books.mended, books.free, books.waiting)

    entries = [ledger.entry_for_job(roles.billing, job) for job in jobs]

    assert [entry and entry.job_id for entry in entries] == [books.mended, books.free, None]
    assert [entry and entry.amount_micros for entry in entries] == [120, 0, None]
