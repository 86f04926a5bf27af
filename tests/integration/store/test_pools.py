"""What a failure leaves on a connection of the pool, and whom an end of Postgres fails."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from uuid import UUID, uuid4

import pytest
from psycopg import DatabaseError
from psycopg.conninfo import make_conninfo
from psycopg.errors import DivisionByZero
from psycopg_pool import PoolTimeout
from psycopg_pool.base import AttemptWithBackoff

from store import pools
from store.pools import AsyncPool, as_tenant, async_pool, connect, sync_pool
from tests.integration.store.conftest import AsApi
from tests.support.waiting import until, wait_until

NUM_BEFORE_PREPARED = 5  # psycopg's threshold


async def _ask(pool: AsyncPool, divisor: int) -> int:
    async with as_tenant(pool, uuid4()) as connection:
        await connection.execute("SELECT 1 / %s", (divisor,))
        cursor = await connection.execute("SELECT 7 AS seven")
        row = await cursor.fetchone()
    assert row is not None
    return int(row["seven"])


async def _backend(pool: AsyncPool, tenant_id: UUID, *, fails_by: str | None = None) -> int:
    """The connection's process, before it is made to fail."""
    backend = 0
    try:
        async with as_tenant(pool, tenant_id) as connection:
            cursor = await connection.execute("SELECT pg_backend_pid() AS pid")
            row = await cursor.fetchone()
            backend = row["pid"] if row else 0
            if fails_by is not None:
                await connection.execute(
                    "DO $$BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '" + fails_by + "'; END$$"
                )
    except DatabaseError:
        assert fails_by
    return backend


@pytest.mark.parametrize(("fails_by", "is_kept"), [("MR001", True), ("22012", False)])
def test_a_refusal_of_ours_keeps_the_connection_and_a_failure_does_not(
    as_api: AsApi, fails_by: str, is_kept: bool
) -> None:
    async def ask() -> bool:
        async with async_pool(as_api.urls.api, application_name="test", max_size=1) as pool:
            before = await _backend(pool, uuid4(), fails_by=fails_by)
            return await _backend(pool, uuid4()) == before

    assert asyncio.run(ask()) is is_kept


@pytest.mark.parametrize("num_before", range(NUM_BEFORE_PREPARED + 2))
def test_a_failure_spoils_no_statement_that_came_behind_it(as_api: AsApi, num_before: int) -> None:
    async def ask() -> list[int]:
        async with async_pool(as_api.urls.api, application_name="test", max_size=1) as pool:
            for _ in range(num_before):
                await _ask(pool, 1)
            with pytest.raises(DivisionByZero):
                await _ask(pool, 0)
            return [await _ask(pool, 1) for _ in range(2)]

    assert asyncio.run(ask()) == [7, 7]


NUM_CONNECTIONS = 4


def _end_all(url: str) -> None:
    """As a restart of Postgres does, of which nobody hears who doesn't ask."""
    with connect(url, application_name="test-end") as connection:
        query = (
            "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid, 5000)) AS num"
            " FROM pg_stat_activity WHERE application_name = 'test'"
        )
        assert connection.execute(query).fetchone() == {"num": NUM_CONNECTIONS}


def test_connections_that_ended_while_they_were_idle_fail_nobody(as_api: AsApi) -> None:
    async def ask() -> list[int]:
        pool = async_pool(
            as_api.urls.api,
            application_name="test",
            min_size=NUM_CONNECTIONS,
            max_size=NUM_CONNECTIONS,
        )
        async with pool:
            await pool.wait()
            _end_all(as_api.urls.api)
            return await asyncio.gather(*(_ask(pool, 1) for _ in range(2 * NUM_CONNECTIONS)))

    assert asyncio.run(ask()) == [7] * 2 * NUM_CONNECTIONS


def test_nor_in_a_worker(as_api: AsApi) -> None:
    pool = sync_pool(
        as_api.urls.worker,
        application_name="test",
        min_size=NUM_CONNECTIONS,
        max_size=NUM_CONNECTIONS,
    )
    with pool:
        pool.wait()
        _end_all(as_api.urls.worker)
        with ExitStack() as held:
            connections = [held.enter_context(pool.connection()) for _ in range(NUM_CONNECTIONS)]
            answers = [each.execute("SELECT 7 AS seven").fetchone() for each in connections]

    assert answers == [{"seven": 7}] * NUM_CONNECTIONS


def test_an_idle_connection_is_used_again(as_api: AsApi) -> None:
    async def ask() -> set[int]:
        async with async_pool(as_api.urls.api, application_name="test", max_size=1) as pool:
            return {await _backend(pool, uuid4()) for _ in range(5)}

    assert len(asyncio.run(ask())) == 1


# An outage: the sixth try would come after 31 times the first pause, and that's how long a pool of
# one would stay empty once Postgres is back. Here a pause is 0.1 s.


@pytest.fixture
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AttemptWithBackoff, "INITIAL_DELAY", 0.1)
    monkeypatch.setattr(pools, "RECONNECT_S", 0.5)


AWAY = "1"  # the port of nobody
NUM_FAILED = 6
SOON_S = 2.0


@pytest.mark.usefixtures("_patience")
@pytest.mark.parametrize("min_size", [1, 2])
def test_a_pool_that_waited_long_for_postgres_has_connections_soon_after(
    as_api: AsApi, min_size: int
) -> None:
    there, away = as_api.urls.worker, make_conninfo(as_api.urls.worker, port=AWAY)
    with sync_pool(away, application_name="test", min_size=min_size, max_size=2) as pool:
        wait_until(lambda: pool.get_stats().get("connections_errors", 0) >= min_size * NUM_FAILED)

        pool.conninfo = there

        pool.wait(timeout=SOON_S)
        with pool.connection(timeout=SOON_S) as connection:
            assert connection.execute("SELECT 7 AS seven").fetchone() == {"seven": 7}


@pytest.mark.usefixtures("_patience")
def test_so_has_one_of_a_loop(as_api: AsApi) -> None:
    there, away = as_api.urls.api, make_conninfo(as_api.urls.api, port=AWAY)

    async def ask() -> int:
        async with async_pool(away, application_name="test", max_size=1) as pool:
            await until(lambda: pool.get_stats().get("connections_errors", 0) >= NUM_FAILED)
            pool.conninfo = there
            await pool.wait(timeout=SOON_S)
            return await _ask(pool, 1)

    assert asyncio.run(ask()) == 7


@pytest.mark.usefixtures("_patience")
def test_an_idle_pool_that_could_not_grow_takes_no_place_from_others(as_api: AsApi) -> None:
    with sync_pool(as_api.urls.worker, application_name="test", max_size=2) as pool:
        pool.wait(timeout=SOON_S)
        pool.conninfo = make_conninfo(as_api.urls.worker, port=AWAY)
        with pool.connection(), pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.1)  # it wants to grow

        wait_until(lambda: pool.get_stats()["pool_size"] == 1)

        num_failed = pool.get_stats()["connections_errors"]
        assert num_failed > 1
        with pool.connection() as connection:
            connection.execute("SELECT 1")
        assert pool.get_stats()["pool_size"] == 1


def test_whoever_is_given_none_but_what_is_gone_waits_no_longer_than_told(
    as_api: AsApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "_is_gone", lambda _: True)

    async def ask() -> None:
        async with async_pool(as_api.urls.api, application_name="test", max_size=2) as pool:
            await pool.getconn(timeout=0.5)

    with pytest.raises(PoolTimeout):
        asyncio.run(asyncio.wait_for(ask(), timeout=10))
    with (
        sync_pool(as_api.urls.worker, application_name="test", max_size=2) as pool,
        ThreadPoolExecutor() as threads,
        pytest.raises(PoolTimeout),
    ):
        threads.submit(pool.getconn, timeout=0.5).result(timeout=10)
