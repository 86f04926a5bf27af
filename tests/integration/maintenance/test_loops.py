"""A loop over Postgres survives anything that happens to its connection."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from psycopg import sql

from cli.stack.database import DatabaseUrls
from store.loops import PostgresLoop
from store.pools import DictConnection, connect
from tests.support.services import Services
from tests.support.waiting import wait_until


@contextmanager
def _running(loop: PostgresLoop) -> Iterator[PostgresLoop]:
    loop.start()
    try:
        yield loop
    finally:
        loop.stop()
        assert not loop.is_alive()


class _Pids:
    """A step that notes over which connection it ran."""

    def __init__(self, fail_on: Callable[[int], bool] = lambda _: False) -> None:
        self.seen: list[int] = []
        self._fail_on = fail_on

    def __call__(self, connection: DictConnection) -> bool:
        row = connection.execute("SELECT pg_backend_pid() AS pid").fetchone()
        assert row is not None
        self.seen.append(row["pid"])
        if self._fail_on(len(self.seen)):
            raise ValueError("a fault in a step")
        return False


def _admit_connections(services: Services, urls: DatabaseUrls, *, allowed: bool) -> None:
    name = urls.owner.rpartition("/")[2]
    with connect(services.postgres.admin_url(), application_name="test") as connection:
        connection.execute(
            sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(
                sql.Identifier(name), sql.Literal(allowed)
            )
        )
        if not allowed:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
            )


def test_a_loop_goes_on_after_an_outage(services: Services, database: DatabaseUrls) -> None:
    pids = _Pids()
    with _running(PostgresLoop("test", database.worker, pids, interval_s=0.01)) as loop:
        wait_until(lambda: pids.seen, what="the first step")
        first = pids.seen[0]

        _admit_connections(services, database, allowed=False)
        wait_until(lambda: loop.num_failures >= 2, what="two failures")
        _admit_connections(services, database, allowed=True)

        wait_until(lambda: pids.seen[-1] != first, what="a step over a new connection")
        assert loop.num_failures == 0


def test_a_fault_in_a_step_does_not_end_the_loop(database: DatabaseUrls) -> None:
    pids = _Pids(fail_on=lambda number: number == 2)

    with _running(PostgresLoop("test", database.worker, pids, interval_s=0.01)):
        wait_until(lambda: len(pids.seen) >= 4, what="a step after the fault")


def test_a_loop_starts_before_postgres_can_be_reached(
    services: Services, database: DatabaseUrls
) -> None:
    _admit_connections(services, database, allowed=False)
    pids = _Pids()

    with _running(PostgresLoop("test", database.worker, pids, interval_s=0.01)) as loop:
        wait_until(lambda: loop.num_failures >= 1, what="a failure")
        _admit_connections(services, database, allowed=True)
        wait_until(lambda: pids.seen, what="the first step")


def test_a_woken_loop_does_not_wait_for_its_interval(database: DatabaseUrls) -> None:
    pids = _Pids()

    with _running(PostgresLoop("test", database.worker, pids, interval_s=60)) as loop:
        wait_until(lambda: len(pids.seen) == 1, what="the first step")
        loop.wake()
        wait_until(lambda: len(pids.seen) == 2, what="the second step")


def test_a_step_with_more_to_do_is_repeated_at_once(database: DatabaseUrls) -> None:
    done = threading.Event()
    left = [1, 2, 3]

    def step(_: DictConnection) -> bool:
        left.pop()
        if not left:
            done.set()
        return bool(left)

    with _running(PostgresLoop("test", database.worker, step, interval_s=60)):
        assert done.wait(10)


def test_a_loop_plans_each_of_its_statements_once(database: DatabaseUrls) -> None:
    seen: list[str] = []

    def step(connection: DictConnection) -> bool:
        row = connection.execute("SHOW plan_cache_mode").fetchone()
        seen.extend(row.values() if row else ())
        return False

    with _running(PostgresLoop("test", database.worker, step, interval_s=0.01)):
        wait_until(lambda: seen)

    assert seen[0] == "force_generic_plan"
