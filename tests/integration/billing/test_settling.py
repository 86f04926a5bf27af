"""Settling: what a job is charged, once, whoever settles it and whatever breaks in between."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from billing import ledger, metrics
from billing.pricing import cost_micros
from billing.usage import Settling, settle_jobs
from cli.stack.database import DatabaseUrls
from store import outcomes
from store.aside import FIRST_S
from store.outcomes import settle
from store.pools import DictConnection, connect
from tests.support.poison import refuse
from tests.support.roles import Connections, connections
from tests.support.rows import Rows, frozen_prices
from tests.support.waiting import wait_until

CREDIT = 1_000_000_000


def _assert_sound(connection: DictConnection) -> None:
    report = ledger.verify(connection)
    assert report.ok, report.to_json()


def test_a_settled_job_moves_its_cost_from_the_tenant_to_revenue(
    roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant(credit_micros=CREDIT)
    job = rows.ended_job(tenant, input_tokens=100, cached_tokens=40, output_tokens=10)

    num_settled = settle_jobs(roles.billing)

    entry = ledger.entry_for_job(roles.billing, job)
    assert num_settled == 1
    assert entry is not None
    assert (entry.kind, entry.amount_micros, entry.price_version) == ("usage", 60 + 10 + 20, 1)
    assert (entry.debit_account, entry.credit_account) == (f"tenant:{tenant}", "platform:revenue")
    assert rows.account(tenant) == (CREDIT - 90, 0)
    usage = rows.one("SELECT * FROM usage WHERE job_id = %s", job)
    assert (usage["amount_micros"], usage["output_tokens"], usage["payer"]) == (90, 10, "tenant")
    reservation = rows.one("SELECT * FROM reservations WHERE job_id = %s", job)
    assert (reservation["state"], reservation["settled_micros"]) == ("settled", 90)
    _assert_sound(roles.owner)


def test_settle_twice_charges_once(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant(credit_micros=CREDIT)
    job = rows.ended_job(tenant)

    counts = [settle_jobs(roles.billing, [job]) for _ in range(2)]

    assert counts == [1, 0]
    assert rows.account(tenant) == (CREDIT - 120, 0)


def test_a_job_with_a_ledger_entry_is_never_charged_again(roles: Connections, rows: Rows) -> None:
    """Even if its outcome comes back unsettled, say from a restored backup of the outbox."""
    tenant = rows.tenant(credit_micros=CREDIT)
    rows.connection.execute("UPDATE tenants SET tokens_per_min = 1000 WHERE id = %s", (tenant,))
    job = rows.ended_job(tenant)
    first = settle(roles.billing, limit=10)
    rows.connection.execute("UPDATE job_outcomes SET settled_at = NULL WHERE job_id = %s", (job,))

    settled = settle(roles.billing, limit=10)

    assert (settled.num_settled, settled.num_entered) == (1, 0)
    assert settled.without_reservation == ()
    assert (first.rate_limited, settled.rate_limited) == ((job,), ())  # tokens go back once too
    assert rows.account(tenant) == (CREDIT - 120, 0)
    _assert_sound(roles.owner)


def test_tokens_go_back_to_tenants_with_a_limit_of_them(roles: Connections, rows: Rows) -> None:
    limited, other = rows.tenant(), rows.tenant()
    rows.connection.execute("UPDATE tenants SET tokens_per_min = 1000 WHERE id = %s", (limited,))
    job, _ = rows.ended_job(limited), rows.ended_job(other)

    settled = settle(roles.billing, limit=10)

    assert (settled.num_settled, settled.rate_limited) == (2, (job,))


@pytest.mark.parametrize("payer", ["platform", "nobody"])
def test_a_job_the_tenant_does_not_pay_costs_nothing_and_frees_its_reservation(
    roles: Connections, rows: Rows, payer: str
) -> None:
    tenant = rows.tenant(credit_micros=CREDIT)
    job = rows.ended_job(tenant, payer=payer, output_tokens=30)

    settle_jobs(roles.billing)

    assert rows.account(tenant) == (CREDIT, 0)
    assert rows.one("SELECT state FROM reservations WHERE job_id = %s", job)["state"] == "released"
    entry = ledger.entry_for_job(roles.billing, job)
    assert entry is not None
    assert entry.amount_micros == 0
    _assert_sound(roles.owner)


def test_a_charge_above_its_reservation_is_capped_and_reported(
    roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant(credit_micros=CREDIT)
    job = rows.ended_job(tenant, max_output_tokens=5, output_tokens=500)

    settled = settle(roles.billing, limit=10)

    assert settled.over_reservation == (job,)
    assert rows.account(tenant) == (CREDIT - 110, 0)
    _assert_sound(roles.owner)


def test_a_job_without_a_reservation_is_not_charged_and_reported(
    roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant(credit_micros=CREDIT)
    job = rows.ended_job(tenant)
    rows.connection.execute("DELETE FROM reservations")
    rows.connection.execute("UPDATE accounts SET held_micros = 0")

    settled = settle(roles.billing, limit=10)

    assert settled.without_reservation == (job,)
    assert rows.account(tenant) == (CREDIT, 0)
    _assert_sound(roles.owner)


def test_a_reservation_that_was_released_before_is_not_freed_again(
    roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant(credit_micros=CREDIT)
    job = rows.ended_job(tenant, payer="platform")
    rows.connection.execute(
        "UPDATE reservations SET state = 'released', settled_micros = 0, resolved_at = now()"
    )
    rows.connection.execute("UPDATE accounts SET held_micros = 0")
    rows.job(tenant)  # holds for itself
    held = rows.account(tenant)[1]

    settled = settle(roles.billing, limit=10)

    assert settled.without_reservation == (job,)
    assert rows.account(tenant) == (CREDIT, held)
    assert held > 0
    _assert_sound(roles.owner)


def _spoil(rows: Rows, job: UUID) -> None:
    """Its cost doesn't fit the column."""
    rows.connection.execute(
        "UPDATE job_outcomes SET input_price = 9e18::bigint, input_tokens = 2000000000"
        " WHERE job_id = %s",
        (job,),
    )


def test_an_outcome_that_can_not_be_settled_holds_up_no_other(
    roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant(credit_micros=CREDIT)
    first, bad, last = (rows.ended_job(tenant) for _ in range(3))
    _spoil(rows, bad)

    num_settled = settle_jobs(roles.billing)

    assert num_settled == 2
    assert ledger.entry_for_job(roles.billing, first) is not None
    assert ledger.entry_for_job(roles.billing, last) is not None
    assert rows.account(tenant) == (CREDIT - 240, 200)
    spoiled = rows.one("SELECT * FROM job_outcomes WHERE job_id = %s", bad)
    assert (spoiled["settled_at"], spoiled["settle_fails"]) == (None, 1)
    assert "out of range" in spoiled["settle_error"]


def test_it_is_tried_a_few_times_then_set_aside_and_named(roles: Connections, rows: Rows) -> None:
    job = rows.ended_job(rows.tenant())
    rows.connection.execute("UPDATE job_outcomes SET created_at = now() - interval '1 hour'")
    _spoil(rows, job)

    for _ in range(outcomes.MAX_SETTLE_FAILS + 3):
        assert settle_jobs(roles.billing) == 0

    row = rows.one("SELECT settle_fails FROM job_outcomes")
    assert row["settle_fails"] == outcomes.MAX_SETTLE_FAILS
    assert outcomes.oldest_unsettled(roles.worker, older_than_s=1) is None
    found = [check for check in ledger.verify(roles.owner).checks if check.num_violations]
    assert [check.name for check in found] == ["no_outcome_is_set_aside"]


def test_an_outcome_whose_row_takes_nothing_is_left_alone_for_ever_longer(
    roles: Connections, rows: Rows
) -> None:
    """Not even its failures can be counted, and it is the oldest."""
    stuck, *others = (rows.ended_job(rows.tenant()) for _ in range(4))
    refuse(roles.owner, "job_outcomes", "job_id", stuck)
    now = 0.0
    settling = Settling(lambda: now)

    with capture_logs() as logs:
        assert settling.settle(roles.billing) == 3
    assert [(each["event"], each["job_id"], each["is_set_aside"]) for each in logs] == [
        ("outcome_not_settled", str(stuck), False)
    ]
    roles.owner.execute("DROP TRIGGER refuse ON job_outcomes")
    assert settling.settle(roles.billing) == 0
    now += FIRST_S + 0.1
    assert settling.settle(roles.billing) == 1

    _assert_sound(roles.owner)
    assert len(others) == 3


def test_a_database_that_does_not_serve_sets_nothing_aside(roles: Connections, rows: Rows) -> None:
    """A privilege or a column that isn't there yet is no outcome's fault."""
    rows.ended_job(rows.tenant())
    rows.connection.execute("REVOKE INSERT ON usage FROM millrace_billing")

    for _ in range(outcomes.MAX_SETTLE_FAILS + 1):
        with pytest.raises(psycopg.ProgrammingError):
            settle_jobs(roles.billing)
    rows.connection.execute("GRANT INSERT ON usage TO millrace_billing")

    assert rows.one("SELECT settle_fails FROM job_outcomes")["settle_fails"] == 0
    assert settle_jobs(roles.billing) == 1


def test_a_failure_that_can_not_be_counted_is_not_swallowed(roles: Connections, rows: Rows) -> None:
    """The right to count them is missing: no fault of the outcome's, nor anything to go on with."""
    job = rows.ended_job(rows.tenant())
    _spoil(rows, job)
    rows.connection.execute("REVOKE UPDATE ON job_outcomes FROM millrace_billing")
    rows.connection.execute("GRANT UPDATE (settled_at) ON job_outcomes TO millrace_billing")

    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        settle_jobs(roles.billing)


def test_only_the_named_jobs_are_settled(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant()
    first, second = rows.ended_job(tenant), rows.ended_job(tenant)

    settle_jobs(roles.billing, [second])

    assert ledger.entry_for_job(roles.billing, first) is None
    assert ledger.entry_for_job(roles.billing, second) is not None


def test_settlers_that_race_charge_each_job_once(
    database: DatabaseUrls, roles: Connections, rows: Rows
) -> None:
    tenants = [rows.tenant(credit_micros=CREDIT) for _ in range(5)]
    jobs = [rows.ended_job(tenants[i % 5]) for i in range(200)]
    start = threading.Barrier(8)

    def settler(seed: int) -> int:
        mine = random.Random(seed).sample(jobs, k=len(jobs))
        with connect(database.billing, application_name="test") as connection:
            start.wait()
            batches = [mine[i : i + 7] for i in range(0, len(mine), 7)]
            return sum(settle_jobs(connection, batch) for batch in batches)

    with ThreadPoolExecutor(8) as threads:
        num_settled = sum(threads.map(settler, range(8)))

    assert num_settled == 200
    assert [rows.account(tenant) for tenant in tenants] == [(CREDIT - 40 * 120, 0)] * 5
    assert rows.one("SELECT count(*) AS n FROM ledger_entries WHERE kind = 'usage'")["n"] == 200
    _assert_sound(roles.owner)


def test_numbers_of_settled_jobs_rise_in_the_order_of_commits(
    database: DatabaseUrls, roles: Connections, rows: Rows
) -> None:
    """So that nothing appears below what a reader has seen: the second waits for the first."""
    tenant = rows.tenant()
    first, second = rows.ended_job(tenant), rows.ended_job(rows.tenant())
    with (
        connect(database.billing, application_name="slow") as slow,
        connect(database.billing, application_name="quick") as quick,
        ThreadPoolExecutor(1) as threads,
    ):
        with slow.transaction():
            settle_jobs(slow, [first])
            settling = threads.submit(settle_jobs, quick, [second])
            wait_until(lambda: _is_waiting(database, quick.info.backend_pid), what="the second")
            assert rows.connection.execute("SELECT FROM usage").fetchall() == []
        assert settling.result(timeout=10) == 1

    numbers = rows.connection.execute("SELECT job_id FROM usage ORDER BY settled_seq").fetchall()
    assert [row["job_id"] for row in numbers] == [first, second]


def test_a_settler_killed_halfway_leaves_nothing_half(
    database: DatabaseUrls, roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant(credit_micros=CREDIT)
    job = rows.ended_job(tenant)
    # The lock on the account holds the settler after its inserts and before its last update.
    with roles.owner.transaction(), connect(database.billing, application_name="victim") as victim:
        roles.owner.execute("SELECT 1 FROM accounts FOR UPDATE")
        with ThreadPoolExecutor(1) as threads:
            settling = threads.submit(settle_jobs, victim)
            wait_until(lambda: _is_waiting(database, victim.info.backend_pid), what="the settler")
            _terminate(database, victim.info.backend_pid)
            with pytest.raises(psycopg.OperationalError):
                settling.result(timeout=10)

    assert rows.account(tenant) == (CREDIT, 150 + 50)
    assert ledger.entry_for_job(roles.billing, job) is None
    assert rows.one("SELECT count(*) AS n FROM usage")["n"] == 0
    assert rows.one("SELECT state FROM reservations")["state"] == "held"
    _assert_sound(roles.owner)

    assert settle_jobs(roles.billing) == 1
    assert rows.account(tenant) == (CREDIT - 120, 0)
    _assert_sound(roles.owner)


def test_balances_equal_the_ledger_after_a_thousand_jobs(
    database: DatabaseUrls, roles: Connections, rows: Rows
) -> None:
    random_ = random.Random(20)
    tenants = [rows.tenant(credit_micros=CREDIT) for _ in range(7)]
    expected: Counter[object] = Counter()
    with rows.connection.transaction():
        for _ in range(1_000):
            tenant, payer = random_.choice(tenants), random_.choice(["tenant"] * 4 + ["nobody"])
            a, b, c = random_.choices(range(10**7), k=3)
            prices = frozen_prices(a, b, c)
            num_input = random_.randrange(1, 2_000)
            counts = {
                "input_tokens": num_input,
                "cached_tokens": random_.randrange(num_input),
                "output_tokens": random_.randrange(400),
            }
            rows.ended_job(tenant, payer=payer, prices=prices, max_output_tokens=400, **counts)
            if payer == "tenant":
                expected[tenant] += cost_micros(**counts, prices=prices)

    def settler(_: int) -> None:
        with connect(database.billing, application_name="test") as connection:
            while settle_jobs(connection, limit=37):
                pass

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(settler, range(3)))
    settle_jobs(roles.billing)

    assert {t: rows.account(t) for t in tenants} == {t: (CREDIT - expected[t], 0) for t in tenants}
    _assert_sound(roles.owner)


def test_sql_and_python_agree_on_every_cost(database: DatabaseUrls) -> None:
    count = st.integers(0, 2**31 - 1)
    price = st.integers(0, 10**13)
    with connections(database) as roles:

        @settings(max_examples=300, deadline=None)
        @given(st.tuples(count, count, count), st.tuples(price, price, price))
        def agree(counts: tuple[int, int, int], micros: tuple[int, int, int]) -> None:
            num_input, num_cached, output = max(counts[:2]), min(counts[:2]), counts[2]
            prices = frozen_prices(*micros)
            cost = cost_micros(
                input_tokens=num_input,
                cached_tokens=num_cached,
                output_tokens=output,
                prices=prices,
            )
            if cost >= 2**63:
                return
            row = roles.billing.execute(
                "SELECT cost_micros(%s::int, %s::int, %s::int, %s, %s, %s) AS cost",
                (num_input, num_cached, output, *micros),
            ).fetchone()
            assert row is not None
            assert row["cost"] == cost

        agree()


def _is_waiting(database: DatabaseUrls, pid: int) -> bool:
    with connect(database.owner, application_name="test") as connection:
        row = connection.execute(
            "SELECT count(*) AS n FROM pg_locks WHERE pid = %s AND NOT granted", (pid,)
        ).fetchone()
    return bool(row and row["n"])


def _terminate(database: DatabaseUrls, pid: int) -> None:
    with connect(database.billing, application_name="test") as connection:
        connection.execute("SELECT pg_terminate_backend(%s)", (pid,))


def test_what_has_failed_often_enough_is_tried_no_more(roles: Connections, rows: Rows) -> None:
    given_up, tried_on = (rows.ended_job(rows.tenant()) for _ in range(2))
    for job, num_fails in ((given_up, 0), (tried_on, 1)):
        rows.connection.execute(
            "UPDATE job_outcomes SET settle_fails = %s WHERE job_id = %s",
            (outcomes.MAX_SETTLE_FAILS - num_fails, job),
        )

    assert settle_jobs(roles.billing) == 1

    assert ledger.entry_for_job(roles.billing, tried_on) is not None
    assert ledger.entry_for_job(roles.billing, given_up) is None


def test_those_asked_for_are_settled_and_no_others(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant(credit_micros=CREDIT)
    bad, good, other = (rows.ended_job(tenant) for _ in range(3))
    _spoil(rows, bad)

    assert settle_jobs(roles.billing, [bad, good]) == 1

    entries = [ledger.entry_for_job(roles.billing, job) for job in (bad, good, other)]
    assert [entry is not None for entry in entries] == [False, True, False]


def test_a_step_that_settled_all_it_may_says_that_more_may_wait(
    roles: Connections, rows: Rows
) -> None:
    for _ in range(3):
        rows.ended_job(rows.tenant())
    settling = Settling(limit=2)

    assert [settling.step(roles.billing) for _ in range(3)] == [True, False, False]


def test_charges_that_are_not_as_they_must_be_are_counted_and_reported(
    roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant(credit_micros=CREDIT)
    over = rows.ended_job(tenant, max_output_tokens=5, output_tokens=500)
    without = rows.ended_job(tenant)
    rows.connection.execute("DELETE FROM reservations WHERE job_id = %s", (without,))
    counters = (metrics.OVER_RESERVATION, metrics.WITHOUT_RESERVATION, metrics.SETTLED)
    before = [counter._value.get() for counter in counters]

    with capture_logs() as logs:
        settle_jobs(roles.billing)

    assert [(each["event"], each["job_id"]) for each in logs] == [
        ("charge_capped_by_reservation", str(over)),
        ("settled_without_reservation", str(without)),
    ]
    after = [counter._value.get() for counter in counters]
    assert [new - old for new, old in zip(after, before, strict=True)] == [1, 1, 2]
