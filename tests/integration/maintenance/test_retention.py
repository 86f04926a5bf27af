"""What is kept for a while only, and for how long."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest

from cli.stack.database import DatabaseUrls
from store import retention
from store.ledger import run_checks
from store.outcomes import oldest_unsettled, settle
from store.retention import DAY_S
from store.settings import RetentionSettings
from tasks.ids import uuid7_floor
from tests.support.roles import Connections
from tests.support.rows import Rows
from workers.maintenance import nudger
from workers.maintenance.periodic import expire, make_partitions, repeat


def _job(rows: Rows, tenant: UUID, *, age_h: float, **fields: Any) -> UUID:
    """A job that ended so long ago, with all that it leaves."""
    row = rows.one("SELECT (extract(epoch FROM now()) * 1000)::bigint AS ms")
    job = rows.ended_job(tenant, id=_id_of(row["ms"] - int(age_h * 3_600_000)), **fields)
    rows.connection.execute(
        "UPDATE jobs SET finished_at = now() - make_interval(secs => %s) WHERE id = %s",
        (age_h * 3_600, job),
    )
    settle(rows.connection, job_ids=[job], limit=1)
    rows.connection.execute(
        "INSERT INTO job_results (job_id, tenant_id, output, last_seq, event_log)"
        " VALUES (%s, %s, '[]', 1, 'log')",
        (job, tenant),
    )
    rows.connection.execute(
        "INSERT INTO job_payloads (job_id, tenant_id, request, prompt_token_ids, sampling)"
        " VALUES (%s, %s, '{}', '', '{}')",
        (job, tenant),
    )
    rows.attempt(job, tenant, 1, uuid4(), outcome="ok")
    return job


def _id_of(unix_ms: int) -> UUID:
    """Of a job made then; no two are the same."""
    return UUID(int=uuid7_floor(unix_ms).int | (uuid4().int & ((1 << 60) - 1)))


def _left(rows: Rows, table: str) -> set[UUID]:
    column = "id" if table == "jobs" else "job_id"
    found = rows.connection.execute(f"SELECT {column} AS id FROM {table}".encode()).fetchall()
    return {row["id"] for row in found}


def _key(rows: Rows, tenant: UUID, name: str, job: UUID, *, age_h: int) -> None:
    rows.connection.execute(
        "INSERT INTO idempotency_keys (tenant_id, key, request_hash, job_id, created_at)"
        " VALUES (%s, %s, '', %s, now() - make_interval(hours => %s))",
        (tenant, name, job, age_h),
    )


def test_each_part_of_a_job_is_kept_for_its_own_time(
    database: DatabaseUrls, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_DATABASE_URL_WORKER", database.worker)
    for name, days in (("ATTEMPTS", 2), ("PAYLOADS", 3), ("RESULTS", 4)):
        monkeypatch.setenv(f"MILLRACE_KEEP_{name}_D", str(days))
    tenant = rows.tenant()
    jobs = [_job(rows, tenant, age_h=24 * day + 1) for day in range(5)]

    expire()

    log = "SELECT job_id FROM job_results WHERE event_log IS NOT NULL"
    assert rows.one(log)["job_id"] == jobs[0]
    assert _left(rows, "job_attempts") == set(jobs[:2])
    assert _left(rows, "job_payloads") == set(jobs[:3])
    assert _left(rows, "job_results") == set(jobs[:4])
    assert _left(rows, "jobs") == _left(rows, "job_outcomes") == set(jobs)
    assert not [finding for finding in run_checks(rows.connection) if finding.num_violations]


def test_nothing_is_removed_that_an_open_job_or_a_batch_that_goes_on_needs(
    roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant()
    is_open, of_batch = (_job(rows, tenant, age_h=10_000) for _ in range(2))
    rows.connection.execute(
        "UPDATE jobs SET status = 'queued', finished_at = NULL WHERE id = %s", (is_open,)
    )
    rows.connection.execute(
        "INSERT INTO batches (id, tenant_id, api_key_id, endpoint, completion_window, service_tier,"
        " input_file_id, status, expires_at) VALUES (%s, %s, 'k', '/', '24h', 'batch', %s,"
        " 'finalizing', now())",
        (of_batch, tenant, of_batch),
    )
    rows.connection.execute("UPDATE jobs SET batch_id = id WHERE id = %s", (of_batch,))

    for expiry in retention.expiries(RetentionSettings()).values():
        expiry(roles.worker, batch=10)

    for table in ("jobs", "job_payloads", "job_results", "job_attempts", "job_outcomes"):
        assert _left(rows, table) == {is_open, of_batch}


def test_rows_outside_of_all_months_are_removed_one_by_one(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant()
    _job(rows, tenant, age_h=24 * 400)
    young = _job(rows, tenant, age_h=1)
    rows.connection.execute("UPDATE job_outcomes SET settled_at = now() - interval '400 days'")

    for expiry in retention.expiries(RetentionSettings()).values():
        repeat(roles.worker, expiry, batch=10)

    for table in ("jobs", "job_payloads", "job_results", "job_attempts", "job_outcomes"):
        assert _left(rows, table) == {young}


def test_a_kind_that_fails_stops_no_other_and_says_so(
    database: DatabaseUrls, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_DATABASE_URL_WORKER", database.worker)
    _job(rows, rows.tenant(), age_h=24 * 31)
    rows.connection.execute("REVOKE DELETE ON job_payloads FROM millrace_worker")

    expire()

    runs = {run["kind"]: run for run in retention.last_runs(rows.connection)}
    assert runs["job_payloads"]["error"] == "InsufficientPrivilege"
    assert (runs["job_results"]["error"], runs["job_results"]["num_removed"]) == (None, 1)


def test_a_month_that_somebody_reads_is_dropped_later(roles: Connections, rows: Rows) -> None:
    rows.connection.execute(
        "CREATE TABLE jobs_p200001 PARTITION OF jobs FOR VALUES"
        " FROM (uuid7_floor('2000-01-01+00')) TO (uuid7_floor('2000-02-01+00'))"
    )
    drop = partial(retention.drop_months, roles.worker, batch=9, parent="jobs", keep_s=DAY_S)
    with rows.connection.transaction():
        rows.connection.execute("SELECT count(*) FROM jobs")
        assert drop() == 0

    assert drop() == 1


def test_idempotency_keys_are_kept_a_day_and_while_their_job_is_open(
    roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant()
    over, is_open = rows.ended_job(tenant), rows.job(tenant)
    _key(rows, tenant, "old", over, age_h=25)
    _key(rows, tenant, "young", over, age_h=23)
    _key(rows, tenant, "open", is_open, age_h=100)

    num = retention.expire_idempotency_keys(roles.worker, batch=10)

    keys = roles.owner.execute("SELECT key FROM idempotency_keys ORDER BY key").fetchall()
    assert num == 1
    assert [row["key"] for row in keys] == ["open", "young"]


def test_retention_works_in_batches_until_nothing_is_left(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant()
    for _ in range(7):
        _job(rows, tenant, age_h=30)
    logs = retention.expiries(RetentionSettings())["event_logs"]

    num = repeat(roles.worker, logs, batch=3)

    assert num == 7


def test_the_periodic_tasks_run_as_the_worker_role(
    database: DatabaseUrls, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_DATABASE_URL_WORKER", database.worker)
    job = _job(rows, rows.tenant(), age_h=30)
    _key(rows, rows.of_job(job)["tenant_id"], "old", job, age_h=30)

    expire()
    make_partitions()

    row = rows.one("SELECT count(event_log) AS logs FROM job_results")
    assert row["logs"] == 0
    assert rows.one("SELECT count(*) AS n FROM idempotency_keys")["n"] == 0
    runs = retention.last_runs(rows.connection)
    assert [run["kind"] for run in runs if run["error"]] == []
    assert len(runs) == len(retention.expiries(RetentionSettings()))


def test_billing_is_nudged_about_the_oldest_late_outcome_alone(
    roles: Connections, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    nudged: list[UUID] = []
    monkeypatch.setattr(nudger, "enqueue_settle", nudged.append)
    tenant = rows.tenant()
    first, *_ = (rows.ended_job(tenant) for _ in range(3))

    nudger.nudge(roles.worker)
    assert nudged == []

    rows.connection.execute("UPDATE job_outcomes SET created_at = now() - interval '11 s'")
    nudger.nudge(roles.worker)
    assert nudged == [first]
    assert oldest_unsettled(roles.worker, older_than_s=60) is None
