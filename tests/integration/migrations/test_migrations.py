"""Migrations go up, down and up again, and leave what the code expects."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.stack.database import DatabaseUrls
from store import migrate
from store.pools import DictConnection, connect
from store.retention import drop_months
from tasks.ids import uuid7, uuid7_floor
from tests.support.rows import Rows
from tests.support.services import Services

PARTITIONED = ("jobs", "job_payloads", "job_results", "job_attempts", "job_outcomes")


@pytest.fixture
def empty(services: Services) -> str:
    return services.empty_database()


@contextmanager
def _owner(url: str) -> Iterator[DictConnection]:
    with connect(url, application_name="test") as connection:
        yield connection


def _objects(url: str) -> set[tuple[str, str]]:
    """Names of all relations, functions, policies and types of ours."""
    with _owner(url) as connection:
        rows = connection.execute(
            "SELECT 'relation' AS kind, relname AS name FROM pg_class"
            " WHERE relnamespace = 'public'::regnamespace"
            " UNION SELECT 'function', oid::regprocedure::text FROM pg_proc"
            " WHERE pronamespace = 'public'::regnamespace"
            " UNION SELECT 'policy', policyname || ' on ' || tablename FROM pg_policies"
            " UNION SELECT 'trigger', tgname FROM pg_trigger WHERE NOT tgisinternal"
        ).fetchall()
    return {(row["kind"], row["name"]) for row in rows}


def test_migrations_go_up_down_and_up_again(empty: str) -> None:
    migrate.upgrade(empty)
    first = _objects(empty)

    migrate.downgrade(empty, "base")
    nothing = _objects(empty)
    migrate.upgrade(empty)

    assert {name for _, name in nothing} <= {"alembic_version", "alembic_version_pkc"}
    assert _objects(empty) == first


def test_keys_with_every_scope_get_what_comes_and_no_others_get_more(empty: str) -> None:
    whole = ["infer:write", "jobs:read", "usage:read", "webhooks:write"]
    before = {"whole": whole, "older": whole[:3], "narrow": ["jobs:read"]}
    migrate.upgrade(empty, "0021")
    with _owner(empty) as connection:
        row = connection.execute(
            "INSERT INTO tenants (id, name, tiers, default_tier)"
            " VALUES (gen_random_uuid(), 'acme', '{default}', 'default') RETURNING id"
        ).fetchone()
        assert row is not None
        for key_id, scopes in before.items():
            connection.execute(
                "INSERT INTO api_keys"
                " (key_id, tenant_id, name, hash, pepper_version, last4, scopes)"
                " VALUES (%s, %s, 'k', 'h', 1, 'abcd', %s)",
                (key_id, row["id"], scopes),
            )

    migrate.upgrade(empty)
    after = _scopes(empty)
    migrate.downgrade(empty, "0021")

    assert after == {**before, "whole": [*whole, "all"]}
    assert _scopes(empty) == before


def _scopes(url: str) -> dict[str, list[str]]:
    with _owner(url) as connection:
        rows = connection.execute("SELECT key_id, scopes FROM api_keys").fetchall()
    return {row["key_id"]: row["scopes"] for row in rows}


def test_upgrading_twice_changes_nothing(empty: str) -> None:
    migrate.upgrade(empty)
    first = _objects(empty)

    migrate.upgrade(empty)

    assert _objects(empty) == first


def test_processes_that_migrate_at_once_all_succeed(empty: str) -> None:
    script = "import sys; from store.migrate import upgrade; upgrade(sys.argv[1])"
    processes = [
        subprocess.Popen([sys.executable, "-c", script, empty], cwd=migrate.ROOT) for _ in range(3)
    ]

    codes = [process.wait(timeout=60) for process in processes]

    assert codes == [0, 0, 0]
    migrate.check(empty)


def test_the_schema_in_code_is_the_one_in_the_database(empty: str) -> None:
    migrate.upgrade(empty)

    migrate.check(empty)


@settings(max_examples=200, deadline=None)
@given(unix_ms=st.integers(0, 4_102_444_800_000))
def _floors_agree(connection: DictConnection, unix_ms: int) -> None:
    row = connection.execute(
        "SELECT uuid7_floor(to_timestamp(0) + make_interval(secs => %s / 1000)"
        " + %s * interval '1 ms') AS floor",
        (unix_ms // 1_000 * 1_000, unix_ms % 1_000),
    ).fetchone()
    assert row is not None
    assert row["floor"] == uuid7_floor(unix_ms)


def test_postgres_and_python_agree_on_the_first_id_of_a_millisecond(
    database: DatabaseUrls,
) -> None:
    with _owner(database.owner) as connection:
        _floors_agree(connection)


def _partitions(connection: DictConnection) -> dict[str, set[str]]:
    rows = connection.execute(
        "SELECT inhparent::regclass::text AS parent, inhrelid::regclass::text AS name"
        " FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhparent WHERE c.relkind = 'p'"
    ).fetchall()
    return {
        parent: {row["name"] for row in rows if row["parent"] == parent} for parent in PARTITIONED
    }


def _call(connection: DictConnection, call: str) -> int:
    row = connection.execute(f"SELECT {call} AS num".encode()).fetchone()
    assert row is not None
    return int(row["num"])


def test_partitions_are_made_ahead_and_once(database: DatabaseUrls) -> None:
    with _owner(database.worker) as worker:
        assert all(len(names) == 1 + 4 for names in _partitions(worker).values())

        made = [_call(worker, "ensure_partitions(5)") for _ in range(2)]

        assert made == [2 * len(PARTITIONED), 0]


def test_a_new_job_goes_into_this_months_partition(database: DatabaseUrls) -> None:
    with _owner(database.owner) as owner:
        rows = Rows(owner)
        job = rows.job(rows.tenant())

        row = rows.one(
            "SELECT tableoid::regclass::text AS name,"
            " 'jobs_p' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMM') AS expected"
            " FROM jobs WHERE id = %s",
            job,
        )
    assert row["name"] == row["expected"]


def test_a_month_whose_rows_are_in_the_default_partition_does_not_stop_the_others(
    database: DatabaseUrls,
) -> None:
    with _owner(database.owner) as owner:
        rows = Rows(owner)
        future_ms = _call(owner, "(extract(epoch FROM now() + interval '4 months') * 1000)::bigint")
        rows.job(rows.tenant(), id=uuid7_floor(future_ms))

        made = _call(owner, "ensure_partitions(6)")

        assert made == 3 * len(PARTITIONED) - 1


def _add_old_months(connection: DictConnection) -> dict[int, str]:
    """Partitions for 3 to 6 months ago; their suffixes."""
    suffixes = {}
    for ago in (3, 4, 5, 6):
        row = connection.execute(
            "SELECT date_trunc('month', now() AT TIME ZONE 'UTC') - make_interval(months => %s)"
            " AS month",
            (ago,),
        ).fetchone()
        assert row is not None
        suffixes[ago] = f"p{row['month']:%Y%m}"
        for parent in PARTITIONED:
            connection.execute(
                f"CREATE TABLE {parent}_{suffixes[ago]} PARTITION OF {parent} FOR VALUES"
                f" FROM (uuid7_floor('{row['month']}+00'))"
                f" TO (uuid7_floor('{row['month']}+00'::timestamptz + interval '1 month'))".encode()
            )
    return suffixes


def _ms_ago(connection: DictConnection, months: int) -> int:
    return _call(
        connection,
        "(extract(epoch FROM date_trunc('month', now() AT TIME ZONE 'UTC')"
        f" - interval '{months} months') * 1000)::bigint",
    )


def _drop_all(connection: DictConnection, keep_s: float) -> list[str]:
    before = _partitions(connection)
    for parent in ("job_payloads", "job_results", "job_attempts", "jobs", "job_outcomes"):
        drop_months(connection, batch=100, parent=parent, keep_s=keep_s)
    after = _partitions(connection)
    return [name for parent in PARTITIONED for name in before[parent] - after[parent]]


def test_old_months_are_dropped_but_not_those_that_are_needed(database: DatabaseUrls) -> None:
    with _owner(database.owner) as owner, _owner(database.worker) as worker:
        rows, tenant = Rows(owner), Rows(owner).tenant()
        suffixes = _add_old_months(owner)
        rows.job(tenant, id=uuid7_floor(_ms_ago(owner, 3) + 5))  # open
        rows.ended_job(tenant, id=uuid7_floor(_ms_ago(owner, 4) + 5))  # unsettled
        of_batch = rows.ended_job(tenant, id=uuid7_floor(_ms_ago(owner, 5) + 5))
        rows.ended_job(tenant, id=uuid7_floor(_ms_ago(owner, 6) + 5))
        owner.execute(
            "UPDATE job_outcomes SET settled_at = now() WHERE job_id < %s",
            (uuid7_floor(_ms_ago(owner, 4)),),
        )
        owner.execute(
            "INSERT INTO batches (id, tenant_id, api_key_id, endpoint, completion_window,"
            " service_tier, input_file_id, status, expires_at) VALUES (%s, %s, 'k', '/', '24h',"
            " 'batch', %s, 'in_progress', now())",
            (of_batch, tenant, of_batch),
        )
        owner.execute("UPDATE jobs SET batch_id = id WHERE id = %s", (of_batch,))

        dropped = _drop_all(worker, 86_400.0)

        left = _partitions(owner)
    assert len(dropped) == len(PARTITIONED)
    for parent in PARTITIONED:
        assert f"{parent}_{suffixes[6]}" in dropped
        assert {f"{parent}_{suffixes[ago]}" for ago in (3, 4, 5)} <= left[parent]


def test_young_months_are_kept_whatever_is_in_them(database: DatabaseUrls) -> None:
    with _owner(database.owner) as owner, _owner(database.worker) as worker:
        _add_old_months(owner)
        before = _partitions(owner)

        assert _drop_all(worker, 300 * 86_400.0) == []
        assert _partitions(owner) == before
        for arguments in (
            ("tenants", "200001", 1e9),
            (None, "200001", 1e9),
            ("jobs", "200001", 0.0),
            ("jobs", "200001", None),
            ("jobs", "default", 1e9),
            ("jobs", None, 1e9),
        ):
            with pytest.raises(psycopg.errors.RaiseException):
                worker.execute("SELECT drop_month(%s, %s, %s)", arguments)


def test_ids_made_in_a_row_fall_into_the_partition_of_their_time() -> None:
    first, second = uuid7(), uuid7()

    assert first < second
    assert uuid7_floor(first.int >> 80) <= first
