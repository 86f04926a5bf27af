"""What is kept for a while only, and for how long."""

from __future__ import annotations

from uuid import UUID

import pytest

from cli.stack.database import DatabaseUrls
from store import retention
from store.outcomes import oldest_unsettled
from tests.support.roles import Connections
from tests.support.rows import Rows
from workers.maintenance import nudger
from workers.maintenance.periodic import expire, make_partitions, repeat


def _result(rows: Rows, tenant: UUID, *, age_h: int) -> UUID:
    job = rows.ended_job(tenant)
    rows.connection.execute(
        "INSERT INTO job_results (job_id, tenant_id, output, last_seq, event_log, created_at)"
        " VALUES (%s, %s, '[]', 1, 'log', now() - make_interval(hours => %s))",
        (job, tenant, age_h),
    )
    return job


def _key(rows: Rows, tenant: UUID, name: str, job: UUID, *, age_h: int) -> None:
    rows.connection.execute(
        "INSERT INTO idempotency_keys (tenant_id, key, request_hash, job_id, created_at)"
        " VALUES (%s, %s, '', %s, now() - make_interval(hours => %s))",
        (tenant, name, job, age_h),
    )


def test_event_logs_are_dropped_after_a_day_and_results_kept(
    roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant()
    _result(rows, tenant, age_h=25)
    young = _result(rows, tenant, age_h=23)

    num = retention.expire_event_logs(roles.worker, batch=10)

    assert num == 1
    left = rows.one("SELECT job_id FROM job_results WHERE event_log IS NOT NULL")
    assert left["job_id"] == young
    assert rows.one("SELECT count(*) AS n FROM job_results")["n"] == 2


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
        _result(rows, tenant, age_h=30)

    num = repeat(roles.worker, retention.expire_event_logs, batch=3)

    assert num == 7


def test_the_periodic_tasks_run_as_the_worker_role(
    database: DatabaseUrls, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_DATABASE_URL_WORKER", database.worker)
    tenant = rows.tenant()
    job = _result(rows, tenant, age_h=30)
    _key(rows, tenant, "old", job, age_h=30)

    expire()
    make_partitions()

    row = rows.one("SELECT count(event_log) AS logs FROM job_results")
    assert row["logs"] == 0
    assert rows.one("SELECT count(*) AS n FROM idempotency_keys")["n"] == 0


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
