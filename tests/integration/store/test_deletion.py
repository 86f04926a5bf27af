"""What is found to delete, what is deleted of it, and that nothing else is touched."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest

from store import deletion
from store.file_output import open_output
from store.pools import DictConnection
from tasks.ids import uuid7
from tests.integration.store.conftest import AsApi
from tests.support.roles import Connections
from tests.support.rows import Rows
from tests.support.waiting import wait_until

NOBODY = UUID(int=0)
STATUSES = {
    **dict.fromkeys(("validating", "in_progress", "finalizing", "cancelling"), True),
    **dict.fromkeys(("completed", "failed", "expired", "cancelled"), False),
}


@pytest.fixture
def worker(roles: Connections) -> DictConnection:
    """One that waits for no lock for long."""
    roles.worker.execute("SET lock_timeout = '2s'")
    return roles.worker


def _batch(rows: Rows, tenant: UUID, status: str, **columns: Any) -> UUID:
    batch_id = uuid7()
    rows.connection.execute(
        "INSERT INTO batches (id, tenant_id, api_key_id, endpoint, completion_window, service_tier,"
        " input_file_id, status, expires_at) VALUES (%s, %s, 'k', '/', '24h', 'batch', %s, %s,"
        " now())",
        (batch_id, tenant, uuid7(), status),
    )
    _set(rows, "batches", batch_id, columns)
    return batch_id


def _set(rows: Rows, table: str, id_: UUID, columns: dict[str, Any]) -> None:
    if columns:
        changes = ", ".join(f"{name} = %s" for name in columns)
        statement = f"UPDATE {table} SET {changes} WHERE id = %s".encode()
        rows.connection.execute(statement, [*columns.values(), id_])


def _job(rows: Rows, tenant: UUID, **columns: Any) -> UUID:
    """One that is over, with all that there may be of it. `key`: of its request."""
    job, key = rows.ended_job(tenant), columns.pop("key", uuid4().hex)
    rows.attempt(job, tenant, 1, uuid4(), produced="abc", splits=[[3, 3, None]], outcome="ok")
    rows.connection.execute(
        "INSERT INTO job_results (job_id, tenant_id, output, last_seq) VALUES (%s, %s, '[]', 1)",
        (job, tenant),
    )
    rows.connection.execute(
        "INSERT INTO job_payloads (job_id, tenant_id, request, prompt_token_ids, sampling)"
        " VALUES (%s, %s, '{}', '', '{}')",
        (job, tenant),
    )
    asked = {
        "metadata": '{"a": "b"}',
        "end_user": "ann",
        "error_message": "no",
        "idempotency_key": key,
        "request_hash": uuid4().bytes,
    }
    _set(rows, "jobs", job, asked | columns)
    _key(rows, tenant, key, job)
    return job


def _key(rows: Rows, tenant: UUID, key: str, job: UUID) -> None:
    rows.connection.execute(
        "INSERT INTO idempotency_keys (tenant_id, key, request_hash, job_id)"
        " VALUES (%s, %s, '', %s)",
        (tenant, key, job),
    )


_TABLES = {
    "jobs": "id",
    "job_payloads": "job_id",
    "job_results": "job_id",
    "job_attempts": "job_id",
    "idempotency_keys": "key",
}


def _all(rows: Rows) -> dict[str, dict[Any, dict[str, Any]]]:
    """All rows of jobs, by table."""
    found = {
        table: rows.connection.execute(f"SELECT * FROM {table}".encode()).fetchall()
        for table in _TABLES
    }
    return {
        table: {row[_TABLES[table]]: row for row in of_table} for table, of_table in found.items()
    }


def test_of_a_deleted_job_its_emptied_row_is_left_and_of_others_all(
    worker: DictConnection, rows: Rows
) -> None:
    tenant, other = rows.tenant(), rows.tenant()
    job, free = _job(rows, tenant, key="its own"), _job(rows, tenant)
    of_over = _job(rows, tenant, batch_id=_batch(rows, tenant, "completed"))
    of_live = _job(rows, tenant, batch_id=_batch(rows, tenant, "finalizing"))
    is_open = _job(rows, tenant, status="queued", finished_at=None)
    gone = _job(rows, tenant, deleted_at="2026-01-01+00")
    _key(rows, tenant, "of a retry", job)
    _key(rows, other, "its own", job)
    renewed = _job(rows, other, key="renewed")
    rows.connection.execute(
        "UPDATE idempotency_keys SET job_id = %s WHERE key = 'renewed'", (free,)
    )
    before = _all(rows)

    ids = [job, of_over, of_live, is_open, gone, renewed]
    assert deletion.delete_jobs(worker, ids) == 3

    after, deleted = _all(rows), {job, of_over, renewed}
    empty: dict[str, Any] = {
        "metadata": {},
        "end_user": None,
        "error_message": None,
        "idempotency_key": None,
    }
    for id_, row in after["jobs"].items():
        if id_ in deleted:
            assert row.pop("deleted_at") is not None
            del before["jobs"][id_]["deleted_at"]
            before["jobs"][id_] |= {**empty, "request_hash": id_.bytes}
            text = {"checkpoint_text": "", "checkpoint_token_ids": b"", "checkpoint_splits": None}
            before["job_attempts"][id_] |= text
            del before["job_payloads"][id_], before["job_results"][id_]
    assert {table: after[table] for table in list(_TABLES)[:4]} == {
        table: before[table] for table in list(_TABLES)[:4]
    }
    keys = rows.connection.execute("SELECT tenant_id, key, job_id FROM idempotency_keys").fetchall()
    assert {row["job_id"] for row in keys} == {free, of_live, is_open, gone, job}
    assert {(row["tenant_id"], row["key"]) for row in keys if row["job_id"] == job} == {
        (tenant, "of a retry"),
        (other, "its own"),
    }
    assert ("renewed", free) in {(row["key"], row["job_id"]) for row in keys}


@pytest.mark.parametrize(("status", "is_live"), STATUSES.items())
def test_what_a_batch_that_goes_on_needs_stays_until_it_is_over(
    worker: DictConnection, rows: Rows, as_api: AsApi, status: str, is_live: bool
) -> None:
    tenant = rows.tenant()
    _job(rows, tenant, batch_id=_batch(rows, tenant, "in_progress"))
    job = _job(rows, tenant, batch_id=_batch(rows, tenant, status))

    needed = as_api(lambda pool: deletion.is_of_live_batch(pool, tenant, job))
    is_deleted = as_api(lambda pool: deletion.delete_job(pool, tenant, job))

    assert (needed, is_deleted) == (is_live, not is_live)


def test_a_tenant_deletes_its_own_jobs_that_are_over_once(
    rows: Rows, roles: Connections, as_api: AsApi
) -> None:
    tenant, other = rows.tenant(), rows.tenant()
    job, beside, foreign = _job(rows, tenant), _job(rows, tenant), _job(rows, other)
    is_open = rows.job(tenant)

    async def delete(pool: Any) -> list[bool]:
        ids = (job, job, is_open, foreign, uuid7())
        return [await deletion.delete_job(pool, tenant, id_) for id_ in ids]

    assert as_api(delete) == [True, False, False, False, False]
    found = rows.connection.execute("SELECT id FROM jobs WHERE deleted_at IS NULL").fetchall()
    assert {row["id"] for row in found} == {beside, foreign, is_open}


def test_whose_job_a_batch_needs(rows: Rows, as_api: AsApi) -> None:
    tenant, other = rows.tenant(), rows.tenant()
    job = _job(rows, tenant, batch_id=_batch(rows, tenant, "validating"))
    alone = _job(rows, tenant)

    async def ask(pool: Any) -> list[bool]:
        asked = [(tenant, job), (other, job), (tenant, alone)]
        return [await deletion.is_of_live_batch(pool, *each) for each in asked]

    assert as_api(ask) == [True, False, False]


def test_a_job_that_somebody_deletes_meanwhile_is_not_deleted_twice(
    rows: Rows, roles: Connections, as_api: AsApi
) -> None:
    tenant = rows.tenant()
    job = _job(rows, tenant)
    waits = "SELECT FROM pg_locks WHERE NOT granted"
    with ThreadPoolExecutor(1) as thread:
        with roles.owner.transaction():
            roles.owner.execute("UPDATE jobs SET deleted_at = now() WHERE id = %s", (job,))
            deleted = thread.submit(as_api, lambda pool: deletion.delete_job(pool, tenant, job))
            wait_until(lambda: roles.owner.execute(waits).fetchone() is not None)
        assert deleted.result() is False


def test_jobs_that_somebody_holds_are_left_for_later(
    worker: DictConnection, rows: Rows, roles: Connections
) -> None:
    tenant = rows.tenant()
    held, free = _job(rows, tenant), _job(rows, tenant)
    with roles.owner.transaction():
        roles.owner.execute("SELECT FROM jobs WHERE id = %s FOR UPDATE", (held,))
        assert deletion.delete_jobs(worker, [held, free]) == 1

    assert deletion.delete_jobs(worker, [held, free]) == 1


_AGES = {"oldest": 900, "old": 800, "young": 50}


def _unstored(rows: Rows, tenant: UUID, name: str, **columns: Any) -> UUID:
    job = _job(rows, tenant, is_stored=False, **columns)
    rows.connection.execute(
        "UPDATE jobs SET finished_at = now() - make_interval(secs => %s) WHERE id = %s",
        (_AGES[name], job),
    )
    return job


def test_what_was_not_to_be_stored_is_found_the_oldest_first(
    worker: DictConnection, rows: Rows
) -> None:
    tenant = rows.tenant()
    batch, other = (_batch(rows, tenant, "completed") for _ in range(2))
    found: dict[UUID | None, list[UUID]] = {}
    for of in (None, batch, other):
        old = _unstored(rows, tenant, "old", batch_id=of)
        oldest = _unstored(rows, tenant, "oldest", batch_id=of)
        _unstored(rows, tenant, "young", batch_id=of)
        _unstored(rows, tenant, "oldest", batch_id=of, deleted_at="2026-01-01+00")
        _unstored(rows, tenant, "oldest", batch_id=of)
        _set(rows, "jobs", _last(rows), {"is_stored": True})
        found[of] = [oldest, old]

    for of, jobs in found.items():
        for limit, aside in ((9, []), (1, []), (9, jobs[:1]), (1, jobs[:1])):
            expected = [job for job in jobs if job not in aside][:limit]
            assert expected == deletion.unstored_jobs(
                worker, keep_s=100, batch=limit, batch_id=of, aside=aside
            )


def _last(rows: Rows) -> UUID:
    return UUID(str(rows.one("SELECT id FROM jobs ORDER BY id DESC LIMIT 1")["id"]))


def test_batches_with_such_jobs_are_found_one_after_the_other(
    worker: DictConnection, rows: Rows
) -> None:
    tenant = rows.tenant()
    statuses = ("completed", "in_progress", "failed", "cancelling")
    batches = []
    for status in statuses:  # before each three that have none
        for columns in (
            {"is_stored": True},
            {"is_stored": False, "deleted_at": "2026-01-01+00"},
            {"is_stored": False, "status": "queued", "finished_at": None},
        ):
            _job(rows, tenant, batch_id=_batch(rows, tenant, "failed"), **columns)
        batches.append(_batch(rows, tenant, status))
        for _ in range(2):
            _job(rows, tenant, batch_id=batches[-1], is_stored=False)
    _job(rows, tenant, batch_id=_batch(rows, tenant, "failed"))

    found = list(zip(batches, (True, False, True, False), strict=True))
    for after, limit, expected in (
        (NOBODY, 9, found),
        (NOBODY, 1, found[:1]),
        (NOBODY, 3, found[:3]),
        (batches[0], 2, found[1:3]),
        (batches[3], 9, []),
    ):
        assert deletion.batches_with_unstored(worker, after=after, batch=limit) == expected


def test_jobs_of_a_batch_are_found_by_id(worker: DictConnection, rows: Rows) -> None:
    tenant = rows.tenant()
    batch, other = (_batch(rows, tenant, "completed") for _ in range(2))
    jobs = [_job(rows, tenant, batch_id=batch) for _ in range(3)]
    _job(rows, tenant, batch_id=batch, deleted_at="2026-01-01+00")
    _job(rows, tenant, batch_id=batch, status="queued", finished_at=None)
    _job(rows, tenant, batch_id=other)
    _job(rows, tenant)

    assert deletion.jobs_of_batch(worker, batch, batch=9) == jobs
    assert deletion.jobs_of_batch(worker, batch, batch=2) == jobs[:2]
    assert deletion.jobs_of_batch(worker, batch, batch=1, aside=jobs[:1]) == jobs[1:2]


def test_rows_of_jobs_that_were_deleted_long_ago_go_with_all_there_is_of_them(
    worker: DictConnection, rows: Rows
) -> None:
    tenant = rows.tenant()
    old, oldest, young, kept = (_job(rows, tenant) for _ in range(4))
    for job, age_s in ((old, 800), (oldest, 900), (young, 50)):
        rows.connection.execute(
            "UPDATE jobs SET deleted_at = now() - make_interval(secs => %s) WHERE id = %s",
            (age_s, job),
        )

    assert deletion.removable_jobs(worker, after_s=100, batch=9) == [oldest, old]
    assert deletion.removable_jobs(worker, after_s=100, batch=1) == [oldest]
    assert deletion.removable_jobs(worker, after_s=100, batch=9, aside=[oldest]) == [old]
    before = _all(rows)
    assert deletion.remove_jobs(worker, [oldest]) == 1
    assert deletion.remove_jobs(worker, [oldest]) == 0
    assert deletion.remove_jobs(worker, []) == 0

    after = _all(rows)
    for table in ("jobs", "job_payloads", "job_results", "job_attempts"):
        assert after[table] == {id_: row for id_, row in before[table].items() if id_ != oldest}
    assert deletion.remove_jobs(worker, [kept]) == 0  # it was never deleted
    assert kept in _all(rows)["jobs"]


def test_deleted_batches_that_are_over_are_found_by_id(worker: DictConnection, rows: Rows) -> None:
    tenant, then = rows.tenant(), "2026-01-01+00"
    _batch(rows, tenant, "completed")
    batches = [
        _batch(rows, tenant, status, deleted_at=then)
        for status, is_live in STATUSES.items()
        if not is_live
    ]
    for status, is_live in STATUSES.items():
        if is_live:
            _batch(rows, tenant, status, deleted_at=then)

    assert deletion.deleted_batches(worker, after=NOBODY, batch=9) == batches
    assert deletion.deleted_batches(worker, after=NOBODY, batch=2) == batches[:2]
    assert deletion.deleted_batches(worker, after=batches[0], batch=1) == batches[1:2]


def test_a_deleted_batch_goes_with_its_files_once_its_jobs_are_deleted(
    worker: DictConnection, rows: Rows
) -> None:
    tenant, then = rows.tenant(), "2026-01-01+00"
    files = [open_output(rows.connection, tenant, filename="x") for _ in range(4)]
    _set(rows, "files", files[1], {"deleted_at": then})
    names = ("output_file_id", "error_file_id")
    batch = _batch(rows, tenant, "failed", **dict(zip(names, files[:2], strict=True)))
    other = _batch(rows, tenant, "failed", output_file_id=files[2])
    job = _job(rows, tenant, batch_id=batch)
    _job(rows, tenant, batch_id=other)
    _job(rows, tenant, deleted_at=then, batch_id=batch)

    def left() -> tuple[list[UUID], list[bool], bool]:
        batches = rows.connection.execute("SELECT id FROM batches ORDER BY id").fetchall()
        query = "SELECT deleted_at, deleted_at < now() - interval '1 day' AS is_old FROM files"
        stamps = rows.connection.execute(f"{query} ORDER BY id".encode()).fetchall()
        are_deleted = [row["deleted_at"] is not None for row in stamps]
        return [row["id"] for row in batches], are_deleted, bool(stamps[1]["is_old"])

    deletion.remove_batch(worker, batch)
    assert left() == ([batch, other], [False, True, False, False], True)
    _set(rows, "jobs", job, {"deleted_at": then})
    deletion.remove_batch(worker, batch)

    assert left() == ([other], [True, True, False, False], True)
