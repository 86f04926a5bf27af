"""Big tables, a connection of each role, and rows to ask them about: what cases are made of."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec
from uuid import UUID

from benchmarks.big_tables import POOL, BigTables, build
from cli.stack.database import DatabaseUrls
from store import claiming
from store.admission import NewJob
from store.attempts import Claimed
from store.pools import AsyncPool, DictConnection, async_pool
from tasks.ids import uuid7
from tasks.queues import ServiceTier, lane_for
from tests.integration.store.writes import lease
from tests.support.costs import Backend, backend_of, pages_of
from tests.support.jobs import PRICES
from tests.support.roles import Connections, connections
from tests.support.services import Services

_Args = ParamSpec("_Args")

# A prepared statement is planned by the first call; what it reads of the catalog then stays cached.
NUM_CALLS_BEFORE = 2
NUM_ROWS = 400  # of each kind for cases to use up

_IDS = {
    "queued": "SELECT id FROM jobs WHERE status = 'queued' AND tenant_id = %s"
    " ORDER BY deadline_at DESC LIMIT %s",
    "finished": "SELECT id FROM jobs WHERE finished_at IS NOT NULL AND tenant_id = %s"
    " ORDER BY id DESC LIMIT %s",
    "files": "SELECT id FROM files WHERE tenant_id = %s AND deleted_at IS NULL"
    " AND purpose = 'user_data' LIMIT %s",
    "batches": "SELECT id FROM batches WHERE tenant_id = %s AND status = 'completed'"
    " ORDER BY id DESC LIMIT %s",
    "deliveries": "SELECT id FROM webhook_deliveries WHERE tenant_id = %s AND"
    " delivered_at IS NOT NULL LIMIT %s",
}


@dataclass(frozen=True, slots=True)
class Call:
    """A statement as its role runs it; made some times, then measured."""

    backend: Backend
    run: Callable[[], object]

    def pages(self, observer: DictConnection) -> int:
        """What it costs once its plan is known."""
        for _ in range(NUM_CALLS_BEFORE):
            self.run()
        return pages_of(observer, self.backend, self.run)


class World:
    """One database of tables, big or small."""

    def __init__(
        self, roles: Connections, tables: BigTables, pool: AsyncPool, runner: asyncio.Runner
    ) -> None:
        self.roles = roles
        self.tables = tables
        self.flood = tables.flood
        self.around = tables.around
        self.worker_id = self.new_worker()
        self._pool = pool
        self._runner = runner
        self._api = Backend(self._on_api("SELECT pg_backend_pid() AS pid")["pid"], self._on_api)
        self._ids = {
            name: iter(
                [r["id"] for r in roles.owner.execute(query.encode(), (self.flood, NUM_ROWS))]
            )
            for name, query in _IDS.items()
        }

    def id_of(self, kind: str) -> UUID:
        """A row of the flood's tenant that no case had yet: see _IDS."""
        return UUID(str(next(self._ids[kind])))

    def ids_of(self, kind: str) -> list[UUID]:
        """Enough of them for all calls of a case."""
        return [self.id_of(kind) for _ in range(NUM_CALLS_BEFORE + 1)]

    def light_jobs(self) -> list[UUID]:
        """Queued jobs of tenants that have no other."""
        rows = self.roles.owner.execute(
            "SELECT id FROM jobs WHERE tenant_id = ANY(%s) AND status = 'queued' LIMIT %s",
            (list(self.tables.light), NUM_CALLS_BEFORE + 1),
        ).fetchall()
        return [row["id"] for row in rows]

    def new_worker(self, *models: str, refused: Sequence[str] = ()) -> UUID:
        """A worker whose lease outlives the tests; without models one that serves all jobs."""
        worker_id = lease(
            self.roles.worker,
            models=models or ("demo",),
            refused=dict.fromkeys(refused, "it is noise"),
        )
        self.roles.owner.execute(
            "UPDATE worker_leases SET expires_at = now() + interval '1 day' WHERE worker_id = %s",
            (worker_id,),
        )
        return worker_id

    def running(self) -> list[Claimed]:
        """Jobs that the worker runs, enough for all calls of a case."""
        claims = [
            claiming.claim_any(self.roles.worker, self.worker_id, POOL)
            for _ in range(NUM_CALLS_BEFORE + 1)
        ]
        assert None not in claims
        return [job for job in claims if job is not None]

    def new_job(self, **changes: Any) -> NewJob:
        """Of the flood's tenant, not admitted yet."""
        fields: dict[str, Any] = {
            "id": uuid7(),
            "tenant_id": self.flood,
            "api_key_id": "key",
            "model": "demo",
            "model_requested": "demo",
            "pool": POOL,
            "service_tier": ServiceTier.DEFAULT,
            "lane": lane_for(self.flood),
            "deadline_s": 600.0,
            "max_fails": 3,
            "input_tokens": 1,
            "max_output_tokens": 20,
            "prices": PRICES,
            "reserve_micros": 100,
            "request_hash": hashlib.sha256(b"request").digest(),
            "request": {},
            "prompt_token_ids": b"\0\0\0\0",
            "sampling": {},
        }
        return NewJob(**{**fields, **changes})

    def asks(
        self,
        function: Callable[Concatenate[AsyncPool, _Args], Awaitable[object]],
        *args: _Args.args,
        **named: _Args.kwargs,
    ) -> Call:
        """As the API does, over a pool of one connection."""
        return self.asks_each(lambda pool: function(pool, *args, **named))

    def asks_each(self, ask: Callable[[AsyncPool], Awaitable[object]]) -> Call:
        """The same, where each call asks for something else."""

        async def call() -> object:
            return await ask(self._pool)

        return Call(self._api, lambda: self._runner.run(call()))

    def works(
        self,
        function: Callable[Concatenate[DictConnection, _Args], object],
        *args: _Args.args,
        **named: _Args.kwargs,
    ) -> Call:
        """As workers do."""
        worker = self.roles.worker
        return Call(backend_of(worker), lambda: function(worker, *args, **named))

    def works_each(
        self, function: Callable[[DictConnection, Any], object], each: list[Any]
    ) -> Call:
        """The same, where each call has an argument of its own."""
        worker, arguments = self.roles.worker, iter(each)
        return Call(backend_of(worker), lambda: function(worker, next(arguments)))

    def bills(
        self,
        function: Callable[Concatenate[DictConnection, _Args], object],
        *args: _Args.args,
        **named: _Args.kwargs,
    ) -> Call:
        """As billing does."""
        billing = self.roles.billing
        return Call(backend_of(billing), lambda: function(billing, *args, **named))

    def plan(self, mode: str) -> None:
        """How Postgres plans prepared statements from now on."""
        statement = f"SET plan_cache_mode = {mode}"
        self._on_api(statement)
        for connection in (self.roles.worker, self.roles.billing):
            connection.execute(statement.encode())

    def _on_api(self, statement: str) -> dict[str, Any]:
        async def execute() -> dict[str, Any]:
            async with self._pool.connection() as connection:
                cursor = await connection.execute(statement.encode())
                return (await cursor.fetchone() or {}) if cursor.description else {}

        return self._runner.run(execute())


@contextmanager
def world(
    services: Services, *, num_queued: int, num_finished: int, num_light: int
) -> Iterator[World]:
    """Tables of so many jobs, and of as much around them; deleted at the end."""
    urls: DatabaseUrls = services.fresh_database()
    with ExitStack() as stack:
        stack.callback(services.drop_database, urls)
        roles = stack.enter_context(connections(urls))
        roles.owner.execute("SET statement_timeout = 0")  # it only prepares
        for connection in (roles.worker, roles.billing):
            connection.prepare_threshold = 0
        tables = build(
            roles.owner, num_queued=num_queued, num_finished=num_finished, num_light=num_light
        )
        runner = stack.enter_context(asyncio.Runner())
        pool = async_pool(urls.api, application_name="test", max_size=1)
        runner.run(pool.open(wait=True))
        stack.callback(lambda: runner.run(pool.close()))
        yield World(roles, tables, pool, runner)
