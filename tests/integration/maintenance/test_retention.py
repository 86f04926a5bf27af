"""What is kept for a while only, and for how long."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal
from uuid import UUID, uuid4

import pytest

from cli.stack.database import DatabaseUrls
from store import retention
from store.ledger import run_checks
from store.outcomes import oldest_unsettled, settle
from store.pools import DictConnection
from store.retention import DAY_S, Expiry
from store.settings import RetentionSettings
from tasks.ids import uuid7_floor
from tests.support.poison import refuse
from tests.support.roles import Connections
from tests.support.rows import Rows
from tests.support.waiting import wait_until
from workers.maintenance import nudger
from workers.maintenance.periodic import Retention, expire, make_partitions


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
        expiry(roles.worker, batch=10)

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
        assert drop().num_removed == 0

    assert drop().num_removed == 1


def test_idempotency_keys_are_kept_a_day_and_while_their_job_is_open(
    roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant()
    over, is_open = rows.ended_job(tenant), rows.job(tenant)
    _key(rows, tenant, "old", over, age_h=25)
    _key(rows, tenant, "young", over, age_h=23)
    _key(rows, tenant, "open", is_open, age_h=100)

    kind = retention.expiries(RetentionSettings())["idempotency_keys"]
    expired = kind(roles.worker, batch=10)

    keys = roles.owner.execute("SELECT key FROM idempotency_keys ORDER BY key").fetchall()
    assert expired.num_removed == 1
    assert [row["key"] for row in keys] == ["open", "young"]


def _expires_while(roles: Connections, kind: str, change: str) -> int:
    """How many rows of a kind go while somebody who has not committed yet changes them: their
    locks decide, not the snapshot.
    """
    expiry = retention.expiries(RetentionSettings())[kind]
    pid = roles.worker.info.backend_pid
    waits = "SELECT FROM pg_locks WHERE pid = %s AND NOT granted"
    with ThreadPoolExecutor(1) as thread:
        with roles.owner.transaction():
            roles.owner.execute(change.encode())
            expired = thread.submit(expiry, roles.worker, batch=10)
            wait_until(lambda: roles.owner.execute(waits, (pid,)).fetchone() is not None)
        return expired.result().num_removed


def test_a_key_that_is_used_again_while_it_expires_stays(roles: Connections, rows: Rows) -> None:
    tenant = rows.tenant()
    _key(rows, tenant, "renewed", rows.ended_job(tenant), age_h=25)

    num = _expires_while(
        roles, "idempotency_keys", "UPDATE idempotency_keys SET created_at = now()"
    )

    assert num == 0
    assert rows.one("SELECT key FROM idempotency_keys")["key"] == "renewed"


def test_a_delivery_that_is_to_be_sent_again_while_it_expires_stays(
    roles: Connections, rows: Rows
) -> None:
    rows.connection.execute(
        "INSERT INTO webhook_deliveries (id, endpoint_id, tenant_id, event_id, type, object_id,"
        " created_at, next_attempt_at, try_until)"
        " VALUES (%s, gen_random_uuid(), %s, gen_random_uuid(),"
        " 'batch.failed', 'x', now() - interval '400 days', NULL, now())",
        (uuid4(), rows.tenant()),
    )

    num = _expires_while(
        roles, "webhook_deliveries", "UPDATE webhook_deliveries SET next_attempt_at = now()"
    )

    assert num == 0
    assert rows.one("SELECT count(*) AS num FROM webhook_deliveries")["num"] == 1


def test_retention_works_in_batches_until_nothing_is_left(
    database: DatabaseUrls, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_DATABASE_URL_WORKER", database.worker)
    tenant = rows.tenant()
    for _ in range(7):
        _job(rows, tenant, age_h=30)

    Retention(batch=3).run()

    runs = {run["kind"]: run["num_removed"] for run in retention.last_runs(rows.connection)}
    assert runs["event_logs"] == 7


def _old_rows_of_each_kind(rows: Rows, tenant: UUID, num: int) -> list[UUID]:
    """Jobs, and what else there is, so old that all of it may go; outside of all months."""
    jobs = [_job(rows, tenant, age_h=24 * 400 - number) for number in range(num)]
    rows.connection.execute("UPDATE job_outcomes SET settled_at = now() - interval '400 days'")
    for number, job in enumerate(jobs):
        _key(rows, tenant, f"key-{number}", job, age_h=24 * 400 - number)
        rows.connection.execute(
            "INSERT INTO batches (id, tenant_id, api_key_id, endpoint, completion_window,"
            " service_tier, input_file_id, status, expires_at, completed_at) VALUES (%s, %s, 'k',"
            " '/', '24h', 'batch', %s, 'completed', now(), now() - interval '400 days')",
            (job, tenant, job),
        )
        for is_late in (False, True):
            rows.connection.execute(
                "INSERT INTO webhook_deliveries (id, endpoint_id, tenant_id, event_id, type,"
                " object_id, created_at, next_attempt_at, try_until)"
                " VALUES (%s, gen_random_uuid(), %s, gen_random_uuid(), 'batch.failed', 'x',"
                " now() - make_interval(days => %s, mins => %s), %s, now() - interval '2 hours')",
                (uuid4(), tenant, 0 if is_late else 400, number, "now" if is_late else None),
            )
    return jobs


# What is changed of a kind's rows, and by what column its first row is known.
_CHANGES: dict[str, tuple[str, Literal["UPDATE", "DELETE"], str]] = {
    "event_logs": ("job_results", "UPDATE", "job_id"),
    "job_payloads": ("job_payloads", "DELETE", "job_id"),
    "job_results": ("job_results", "DELETE", "job_id"),
    "job_attempts": ("job_attempts", "DELETE", "job_id"),
    "jobs_outside_months": ("jobs", "DELETE", "id"),
    "outcomes_outside_months": ("job_outcomes", "DELETE", "job_id"),
    "batches": ("batches", "DELETE", "id"),
    "idempotency_keys": ("idempotency_keys", "DELETE", "job_id"),
    "webhook_deliveries": ("webhook_deliveries", "DELETE", "id"),
    "late_webhook_deliveries": ("webhook_deliveries", "UPDATE", "id"),
}


def test_each_kind_of_rows_has_a_poisoned_one_below() -> None:
    kinds = retention.expiries(RetentionSettings())

    assert {kind for kind in kinds if not kind.startswith("months_of_")} == _CHANGES.keys()


def _stuck(rows: Rows, kind: str, jobs: Sequence[UUID]) -> Sequence[UUID]:
    """The first two rows of a kind."""
    if _CHANGES[kind][0] != "webhook_deliveries":
        return jobs[:2]
    is_late = "IS NOT NULL" if kind == "late_webhook_deliveries" else "IS NULL"
    found = rows.connection.execute(
        f"SELECT id FROM webhook_deliveries WHERE next_attempt_at {is_late}"
        " ORDER BY created_at, try_until LIMIT 2".encode()
    )
    return [row["id"] for row in found]


def _round(expiry: Expiry, worker: DictConnection) -> tuple[int, list[str]]:
    """In batches of two."""
    num, after = 0, None
    failures: list[str] = []
    while True:
        expired = expiry(worker, batch=2, after=after)
        num, failures, after = (
            num + expired.num_removed,
            [*failures, *expired.failures],
            expired.after,
        )
        if after is None:
            return num, failures


@pytest.mark.parametrize("kind", _CHANGES)
def test_a_row_that_can_not_be_removed_holds_up_none_behind_it(
    roles: Connections, rows: Rows, kind: str
) -> None:
    """Two of them fill the first batch. They are tried again by the next round."""
    stuck = _stuck(rows, kind, _old_rows_of_each_kind(rows, rows.tenant(), 5))
    if kind == "outcomes_outside_months":
        rows.connection.execute("DELETE FROM jobs")
    table, event, column = _CHANGES[kind]
    for number, value in enumerate(stuck):
        refuse(rows.connection, table, column, value, name=f"refuse_{number}", event=event)
    expiry = retention.expiries(RetentionSettings())[kind]

    assert _round(expiry, roles.worker) == (3, ["P0001 refused"] * 2)

    for number in range(2):
        rows.connection.execute(f"DROP TRIGGER refuse_{number} ON {table}".encode())
    assert _round(expiry, roles.worker) == (2, [])


def test_rows_that_can_not_be_removed_are_told_of(
    database: DatabaseUrls, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_DATABASE_URL_WORKER", database.worker)
    tenant = rows.tenant()
    stuck, _ = (_job(rows, tenant, age_h=24 * 32 - number) for number in range(2))
    refuse(rows.connection, "job_payloads", "job_id", stuck, event="DELETE")

    expire()

    runs = {run["kind"]: run for run in retention.last_runs(rows.connection)}
    payloads = runs["job_payloads"]
    assert payloads["num_removed"] == 1
    assert payloads["error"] == "1 can't be removed: P0001 refused"


def test_a_kind_that_runs_out_of_time_goes_on_behind_what_can_not_be_removed(
    database: DatabaseUrls, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_DATABASE_URL_WORKER", database.worker)
    tenant = rows.tenant()
    jobs = [_job(rows, tenant, age_h=24 * 32 - number) for number in range(4)]
    for number, job in enumerate(jobs[:2]):
        name = f"refuse_{number}"
        refuse(rows.connection, "job_payloads", "job_id", job, name=name, event="DELETE")
    retained = Retention(batch=2, time_per_kind_s=0)

    retained.run()
    assert _left(rows, "job_payloads") == set(jobs)
    retained.run()

    assert _left(rows, "job_payloads") == set(jobs[:2])


def _month(rows: Rows, year: int) -> None:
    rows.connection.execute(
        f"CREATE TABLE jobs_p{year}01 PARTITION OF jobs FOR VALUES FROM"
        f" (uuid7_floor('{year}-01-01+00')) TO (uuid7_floor('{year}-02-01+00'))".encode()
    )


def test_a_month_that_can_not_be_dropped_holds_up_none_behind_it(
    database: DatabaseUrls, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_DATABASE_URL_WORKER", database.worker)
    for year in (2000, 2001, 2002):
        _month(rows, year)
    rows.connection.execute("CREATE VIEW of_an_operator AS SELECT id FROM jobs_p200001")

    Retention().run()

    runs = {run["kind"]: run for run in retention.last_runs(rows.connection)}
    assert runs["months_of_jobs"]["num_removed"] == 2
    assert "200001: 2BP01" in runs["months_of_jobs"]["error"]


def test_a_month_that_somebody_reads_for_long_holds_up_none_behind_it(
    roles: Connections, rows: Rows
) -> None:
    for year in (2000, 2001):
        _month(rows, year)

    with roles.owner.transaction():
        roles.owner.execute("SELECT count(*) FROM jobs_p200001")
        expired = retention.drop_months(roles.worker, batch=9, parent="jobs", keep_s=DAY_S)

    assert expired.num_removed == 1
    assert "200001" in expired.failures[0]


def test_a_batch_ends_after_so_many_months(roles: Connections, rows: Rows) -> None:
    for year in (2000, 2001, 2002):
        _month(rows, year)

    expired = retention.drop_months(roles.worker, batch=2, parent="jobs", keep_s=DAY_S)

    assert expired.num_removed == 2
    assert roles.owner.execute("SELECT to_regclass('jobs_p200201') AS name").fetchone() == {
        "name": "jobs_p200201"
    }


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
