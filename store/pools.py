"""Connection pools: async in the API, sync in workers, one driver. Autocommit; a transaction is
written where it is needed.
"""

from __future__ import annotations

import select
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, Connection, Error
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from store.storable import mend_unstorable, refuse_unstorable
from store.tenant_gate import TenantGate

# A query that takes longer is a fault, not a slow query; the client hears 503 and may retry.
STATEMENT_TIMEOUT_MS = 5_000
IDLE_IN_TRANSACTION_TIMEOUT_MS = 10_000
CONNECT_TIMEOUT_S = 5
CHECKOUT_TIMEOUT_S = 5.0
RECONNECT_S = 5.0  # of pauses that double: then a pool begins anew with the first, while it must
OUR_SQLSTATES = "MR"  # what our functions and triggers raise begins so

DictConnection = Connection[DictRow]
AsyncDictConnection = AsyncConnection[DictRow]


class SyncPool(ConnectionPool[DictConnection]):
    """A pool for threads. Nobody is given a connection that Postgres closed while it was idle."""

    def getconn(self, timeout: float | None = None) -> DictConnection:
        """As the base, which gives one that is gone too: each would fail somebody's statement."""
        give_up_at = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            connection = super().getconn(give_up_at - time.monotonic())
            if not _is_gone(connection):
                return connection
            connection.close()
            self.putconn(connection)  # another takes its place


class AsyncPool(AsyncConnectionPool[AsyncDictConnection]):
    """The same for one event loop. With a gate no tenant can have all of its connections."""

    gate: TenantGate | None = None

    async def getconn(self, timeout: float | None = None) -> AsyncDictConnection:
        """As that of `SyncPool`."""
        give_up_at = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            connection = await super().getconn(give_up_at - time.monotonic())
            if not _is_gone(connection):
                return connection
            await connection.close()
            await self.putconn(connection)

    def turn(self, tenant_id: UUID) -> AbstractAsyncContextManager[None]:
        """What a tenant waits for before it asks for a connection."""
        return self.gate.turn(tenant_id) if self.gate else nullcontext()


def _is_gone(connection: DictConnection | AsyncDictConnection) -> bool:
    """Whether Postgres has closed a connection that nobody uses. Asks the kernel, not Postgres."""
    if connection.closed:
        return True
    arrivals = select.poll()
    try:
        arrivals.register(connection.fileno(), select.POLLIN)
        while arrivals.poll(0):  # what it said last, then its end
            connection.pgconn.consume_input()
    except (Error, OSError, ValueError):  # it has no socket any more, or can't be asked
        return True
    return False


def _must_grow(pool: ConnectionPool[Any] | AsyncConnectionPool[Any]) -> bool:
    """Whether it has fewer connections than it keeps."""
    stats = pool.get_stats()
    return stats["pool_size"] < stats["pool_min"]


def _try_again(pool: ConnectionPool[Any]) -> None:
    """Else it would be tried again once somebody asks. An idle pool takes no place from others."""
    if _must_grow(pool):
        pool.check()


async def _try_again_async(pool: AsyncConnectionPool[Any]) -> None:
    """The same."""
    if _must_grow(pool):
        await pool.check()


def connection_options(application_name: str, *, plans_once: bool = False) -> dict[str, Any]:
    """Keyword arguments for a psycopg connection of this process.

    `plans_once`: each statement is prepared and planned when it is first used, for any values. To
    plan a claim over the partitions of a year takes longer than to run it, and would be done ten
    times before Postgres kept the plan. Nor does such a plan trust statistics, which know nothing
    of a flood that has just come.
    """
    plan = " -c plan_cache_mode=force_generic_plan" if plans_once else ""
    return {
        "autocommit": True,
        "row_factory": dict_row,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": application_name,
        # A peer that vanished without a FIN is noticed within 15 s instead of 2 h.
        "keepalives_idle": 5,
        "keepalives_interval": 5,
        "keepalives_count": 2,
        "tcp_user_timeout": 15_000,
        "options": (
            f"-c statement_timeout={STATEMENT_TIMEOUT_MS}"
            f" -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_TIMEOUT_MS}{plan}"
        ),
        **({"prepare_threshold": 0} if plans_once else {}),
    }


def sync_pool(
    url: str,
    *,
    application_name: str,
    max_size: int,
    min_size: int = 1,
    plans_once: bool = False,
) -> SyncPool:
    """A pool for threads. The caller opens and closes it."""
    return SyncPool(
        url,
        connection_class=Connection[DictRow],
        kwargs=connection_options(application_name, plans_once=plans_once),
        configure=mend_unstorable,
        min_size=min_size,
        max_size=max_size,
        timeout=CHECKOUT_TIMEOUT_S,
        reconnect_timeout=RECONNECT_S,
        reconnect_failed=_try_again,
        open=False,
        name=application_name,
    )


def async_pool(
    url: str,
    *,
    application_name: str,
    max_size: int,
    min_size: int = 1,
    max_tenant: int | None = None,
) -> AsyncPool:
    """A pool for one event loop, which writes requests. The caller opens and closes it.

    `max_tenant`: statements of one tenant that run at once; more wait behind their own.
    """
    pool = AsyncPool(
        url,
        connection_class=AsyncConnection[DictRow],
        kwargs=connection_options(application_name),
        configure=_refuse_unstorable,
        min_size=min_size,
        max_size=max_size,
        timeout=CHECKOUT_TIMEOUT_S,
        reconnect_timeout=RECONNECT_S,
        reconnect_failed=_try_again_async,
        open=False,
        name=application_name,
    )
    if max_tenant is not None:
        pool.gate = TenantGate(max_tenant, CHECKOUT_TIMEOUT_S)
    return pool


def connect(url: str, *, application_name: str, plans_once: bool = False) -> DictConnection:
    """One connection, for commands and loops."""
    options = connection_options(application_name, plans_once=plans_once)
    connection = Connection[DictRow].connect(url, **options)
    mend_unstorable(connection)
    return connection


SET_TENANT = "SELECT set_config('app.tenant_id', %s, true)"
_SET_TENANT_AND_PLAN = f"{SET_TENANT}, set_config('plan_cache_mode', 'force_generic_plan', true)"


@asynccontextmanager
async def as_tenant(
    pool: AsyncPool, tenant_id: UUID, *, plans_once: bool = False
) -> AsyncIterator[AsyncDictConnection]:
    """A connection in a pipeline whose statements see this tenant's rows only.

    The block is one implicit transaction: it commits when the block ends, and fails as a whole.
    The tenant and a single statement cost one round trip. Raises RateLimitExceeded if the pool has
    a gate and the tenant gets no turn in time.

    `plans_once`: for statements about one row, of which a connection keeps the plan. To plan one
    over all partitions takes longer than to run it.
    """
    async with (
        pool.turn(tenant_id),
        pool.connection() as connection,
        _closed_by_failures(connection),
        connection.pipeline(),
    ):
        await connection.execute(
            _SET_TENANT_AND_PLAN if plans_once else SET_TENANT, (str(tenant_id),)
        )
        yield connection


@asynccontextmanager
async def _closed_by_failures(connection: AsyncDictConnection) -> AsyncIterator[None]:
    """Give up a connection on which a pipeline failed. What came behind the failing statement was
    never prepared, and psycopg counts it as prepared: whoever used the connection next would hear
    of a prepared statement that does not exist. Our own refusals come last in their pipelines.
    """
    try:
        yield
    except Error as error:
        if not (error.sqlstate or "").startswith(OUR_SQLSTATES):
            await connection.close()
        raise


async def postgres_now(pool: AsyncPool, tenant_id: UUID) -> datetime:
    """By the clock that all stored times are of. Costs a statement of the tenant's."""
    async with as_tenant(pool, tenant_id) as connection:
        cursor = await connection.execute("SELECT now() AS now")
        row = await cursor.fetchone()
    assert row is not None
    now: datetime = row["now"]
    return now


async def _refuse_unstorable(connection: AsyncDictConnection) -> None:
    refuse_unstorable(connection)
