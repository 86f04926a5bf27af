"""Which rows are over and which are not, each kind by its own clock."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest

from store import retention
from store.retention import DAY_S, HOUR_S, Expired
from store.settings import RetentionSettings
from store.webhook_sending import LATE_S
from tasks.ids import uuid7
from tests.integration.maintenance.test_retention import _expires_while, _id_of, _job, _key, _left
from tests.support.roles import Connections
from tests.support.rows import Rows

YEAR_H = 24 * 400  # outside of all months
PARTS = ("job_payloads", "job_results", "job_attempts")


def _expire(roles: Connections, *kinds: str) -> list[Expired]:
    expiries = retention.expiries(RetentionSettings())
    return [expiries[kind](roles.worker, batch=50) for kind in kinds]


def _ended_just_now(rows: Rows, *jobs: UUID) -> None:
    rows.connection.execute("UPDATE jobs SET finished_at = now() WHERE id = ANY(%s)", (list(jobs),))


def _batch(rows: Rows, tenant: UUID, status: str, job: UUID | None = None) -> UUID:
    """And it has the job."""
    batch = uuid7()
    rows.connection.execute(
        "INSERT INTO batches (id, tenant_id, api_key_id, endpoint, completion_window, service_tier,"
        " input_file_id, status, expires_at) VALUES (%s, %s, 'k', '/', '24h', 'batch', %s, %s,"
        " now())",
        (batch, tenant, uuid7(), status),
    )
    rows.connection.execute("UPDATE jobs SET batch_id = %s WHERE id = %s", (batch, job))
    return batch


def test_how_long_each_kind_is_kept() -> None:
    keep = RetentionSettings(
        event_logs_h=5,
        payloads_d=2,
        results_d=3,
        attempts_d=4,
        jobs_d=5,
        outcomes_d=6,
        batches_d=7,
        webhook_deliveries_d=8,
    )

    kept = {
        kind: expiry.keywords["keep_s"] if isinstance(expiry, partial) else expiry.keep_s  # type: ignore[attr-defined]
        for kind, expiry in retention.expiries(keep).items()
    }

    of_tables = {"job_payloads": 2, "job_results": 3, "job_attempts": 4}
    months = {**of_tables, "jobs": 5, "job_outcomes": 6}
    assert kept == {
        **{f"months_of_{table}": num * DAY_S for table, num in months.items()},
        "event_logs": 5 * HOUR_S,
        **{table: num * DAY_S for table, num in of_tables.items()},
        "jobs_outside_months": 5 * DAY_S,
        "outcomes_outside_months": 6 * DAY_S,
        "batches": 7 * DAY_S,
        "idempotency_keys": 24 * HOUR_S,
        "webhook_deliveries": 8 * DAY_S,
        "late_webhook_deliveries": LATE_S,
    }
    assert (DAY_S, HOUR_S) == (86_400, 3_600)


def test_jobs_outlive_their_results_and_outcomes_their_jobs() -> None:
    expiries: dict[str, Any] = retention.expiries(
        RetentionSettings(jobs_d=5, results_d=9, outcomes_d=1)
    )

    kinds = ("jobs_outside_months", "outcomes_outside_months")
    assert {expiries[kind].keep_s for kind in kinds} == {9 * DAY_S}


def test_time_is_counted_from_a_jobs_end_not_from_its_beginning(
    roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant()
    over, ended = (_job(rows, tenant, age_h=YEAR_H) for _ in range(2))
    _ended_just_now(rows, ended)
    rows.connection.execute("UPDATE job_outcomes SET settled_at = now() - interval '400 days'")

    _expire(roles, *PARTS, "event_logs", "jobs_outside_months", "outcomes_outside_months")

    for table in ("jobs", *PARTS, "job_outcomes"):
        assert _left(rows, table) == {ended}
    assert rows.one("SELECT event_log FROM job_results")["event_log"] == b"log"
    assert over != ended


def test_parts_without_a_job_go_by_when_it_was_made(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant()
    jobs = [_job(rows, tenant, age_h=age) for age in (YEAR_H, 1)]
    rows.connection.execute("DELETE FROM jobs")

    _expire(roles, *PARTS)

    assert [_left(rows, table) for table in PARTS] == [{jobs[1]}] * 3


@pytest.mark.parametrize("status", ["validating", "in_progress", "finalizing", "cancelling"])
def test_only_what_a_batch_that_goes_on_has_stays(
    roles: Connections, rows: Rows, status: str
) -> None:
    tenant = rows.tenant()
    needed, free, alone = (_job(rows, tenant, age_h=YEAR_H) for _ in range(3))
    _batch(rows, tenant, status, needed)
    for over in ("completed", "failed", "expired", "cancelled"):
        _batch(rows, tenant, over, free)

    _expire(roles, *PARTS, "jobs_outside_months")

    for table in ("jobs", *PARTS):
        assert _left(rows, table) == {needed}
    assert alone not in _left(rows, "jobs")


def test_an_event_log_is_removed_once(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant()
    for _ in range(3):
        _job(rows, tenant, age_h=30)

    found = [_expire(roles, "event_logs")[0].num_removed for _ in range(2)]

    assert found == [3, 0]


def test_a_job_that_is_not_settled_stays_and_no_other_for_it(
    roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant()
    unsettled, settled, without = (_job(rows, tenant, age_h=YEAR_H) for _ in range(3))
    unsettle = "UPDATE job_outcomes SET settled_at = NULL WHERE job_id = %s"
    rows.connection.execute(unsettle, (unsettled,))
    rows.connection.execute("DELETE FROM job_outcomes WHERE job_id = %s", (without,))

    [expired] = _expire(roles, "jobs_outside_months")

    assert (_left(rows, "jobs"), expired.num_removed) == ({unsettled}, 2)
    assert settled not in _left(rows, "jobs")


def test_an_outcome_goes_after_its_job_by_when_it_was_settled(
    roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant()
    with_job, settled_late, unsettled, over = (_job(rows, tenant, age_h=YEAR_H) for _ in range(4))
    rows.connection.execute("UPDATE job_outcomes SET settled_at = now() - interval '400 days'")
    for job, change in ((settled_late, "now()"), (unsettled, "NULL")):
        rows.connection.execute(
            f"UPDATE job_outcomes SET settled_at = {change} WHERE job_id = %s".encode(), (job,)
        )
    rows.connection.execute("DELETE FROM jobs WHERE id <> %s", (with_job,))

    [expired] = _expire(roles, "outcomes_outside_months")

    assert expired.num_removed == 1
    assert _left(rows, "job_outcomes") == {with_job, settled_late, unsettled}
    assert over not in _left(rows, "job_outcomes")


def test_a_batch_goes_by_when_it_ended_however_it_did(roles: Connections, rows: Rows) -> None:
    tenant, young = rows.tenant(), set()
    old_id = rows.one("SELECT (extract(epoch FROM now()) * 1000)::bigint AS ms")["ms"]
    for status in ("completed", "failed", "expired", "cancelled"):
        for days in (400, 1):
            batch = _batch(rows, tenant, status)
            made = _id_of(old_id - YEAR_H * 3_600_000)
            rows.connection.execute(
                f"UPDATE batches SET id = %s, {status}_at = now() - make_interval(days => %s)"
                " WHERE id = %s".encode(),
                (made, days, batch),
            )
            young |= {made} if days == 1 else set()

    [expired] = _expire(roles, "batches")

    left = rows.connection.execute("SELECT id FROM batches").fetchall()
    assert ({row["id"] for row in left}, expired.num_removed) == (young, 4)


def test_a_key_is_its_tenants_whoever_has_one_of_the_same_name(
    roles: Connections, rows: Rows
) -> None:
    tenant, other = rows.tenant(), rows.tenant()
    _key(rows, tenant, "same", rows.ended_job(tenant), age_h=30)
    _key(rows, other, "same", rows.job(other), age_h=30)

    [expired] = _expire(roles, "idempotency_keys")

    assert expired.num_removed == 1
    assert rows.one("SELECT tenant_id FROM idempotency_keys")["tenant_id"] == other


def _delivery(rows: Rows, *, age: str, is_sent: bool, late: str = "0 s") -> UUID:
    delivery = uuid4()
    rows.connection.execute(
        "INSERT INTO webhook_deliveries (id, endpoint_id, tenant_id, event_id, type, object_id,"
        " created_at, next_attempt_at, try_until) VALUES (%s, gen_random_uuid(), %s,"
        " gen_random_uuid(), 'batch.failed', 'x', now() - %s::interval,"
        " CASE WHEN %s THEN NULL ELSE now() END, now() - %s::interval)",
        (delivery, rows.tenant(), age, is_sent, late),
    )
    return delivery


def test_deliveries_that_were_sent_are_kept_a_while_and_others_until_they_are(
    roles: Connections, rows: Rows
) -> None:
    _delivery(rows, age="31 days", is_sent=True)
    kept = {
        _delivery(rows, age="29 days", is_sent=True),
        _delivery(rows, age="31 days", is_sent=False),
    }

    [expired] = _expire(roles, "webhook_deliveries")

    left = rows.connection.execute("SELECT id FROM webhook_deliveries").fetchall()
    assert ({row["id"] for row in left}, expired.num_removed) == (kept, 1)


def test_deliveries_are_given_up_some_time_after_their_day(roles: Connections, rows: Rows) -> None:
    late = _delivery(rows, age="2 days", is_sent=False, late="61 min")
    _delivery(rows, age="2 days", is_sent=False, late="59 min")
    _delivery(rows, age="2 days", is_sent=True, late="61 min")

    found = [_expire(roles, "late_webhook_deliveries")[0].num_removed for _ in range(2)]

    assert found == [1, 0]
    row = rows.one(
        "SELECT id, next_attempt_at FROM webhook_deliveries WHERE given_up_at IS NOT NULL"
    )
    assert row == {"id": late, "next_attempt_at": None}


@pytest.mark.parametrize("change", ["next_attempt_at = NULL", "try_until = now()"])
def test_a_delivery_that_is_sent_while_it_is_given_up_is_not(
    roles: Connections, rows: Rows, change: str
) -> None:
    _delivery(rows, age="2 days", is_sent=False, late="61 min")

    statement = f"UPDATE webhook_deliveries SET {change}"
    assert _expires_while(roles, "late_webhook_deliveries", statement) == 0
    assert rows.one("SELECT given_up_at FROM webhook_deliveries")["given_up_at"] is None


def test_months_are_of_one_table_and_rows_outside_of_them_are_none(
    roles: Connections, rows: Rows
) -> None:
    rows.connection.execute(
        "CREATE TABLE jobs_p200001 PARTITION OF jobs FOR VALUES"
        " FROM (uuid7_floor('2000-01-01+00')) TO (uuid7_floor('2000-02-01+00'))"
    )
    drop = partial(retention.drop_months, roles.worker, batch=9, keep_s=DAY_S)

    assert drop(parent="job_payloads") == Expired(0, [])
    assert drop(parent="jobs") == Expired(1, [])


def test_what_each_kind_came_to_is_told_by_name(roles: Connections, rows: Rows) -> None:
    retention.note_run(roles.worker, "jobs", 3, "no")
    retention.note_run(roles.worker, "batches", 1)
    retention.note_run(roles.worker, "jobs", 4)
    rows.connection.execute("UPDATE retention_runs SET ended_at = now() - interval '1 hour'")

    runs = retention.last_runs(roles.worker)

    assert [(run["kind"], run["num_removed"], run["error"]) for run in runs] == [
        ("batches", 1, None),
        ("jobs", 4, None),
    ]
    assert all(3_600 <= run["age_s"] < 3_700 for run in runs)
