"""A whole Millrace of real processes that a test can start, pause, kill and restart one by one.

    with Cluster(num_workers=2) as cluster:
        tenant = cluster.create_tenant("acme")
        httpx.post(f"{cluster.url}/v1/jobs", headers=tenant.headers, json={...})
        cluster.workers[0].kill()

No pytest in here: benchmarks use it too. Every process ends with the cluster, and also when the
process that made the cluster is killed.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psycopg
import redis
from psycopg.rows import dict_row

from cli.stack import ports, processes
from cli.stack.files import ROOT
from cli.stack.processes import Platform, ProcessSpec
from store import tenants
from store.catalog import apply_catalog
from tasks.limits import NO_LIMITS, Limits
from tests.support.member import Member, Tenant
from tests.support.services import Services, scratch_folder

API_MODULE = "api.server"


class Cluster:
    """The processes of one platform with their own Postgres and Redis.

    engine="stub" is deterministic and needs no model; environment is added to every process,
    worker_environment to inference workers. Members can be added while it runs. `api_module` is
    what an API process runs instead.
    """

    def __init__(
        self,
        *,
        num_apis: int = 1,
        num_workers: int = 1,
        num_billing: int = 1,
        num_maintenance: int = 1,
        num_batches: int = 0,
        engine: str = "stub",
        pool: str = "default",
        device: str = "cpu",
        catalog: Path = ROOT / "catalog.toml",
        environment: Mapping[str, str] | None = None,
        worker_environment: Mapping[str, str] | None = None,
        redis_program: Path | None = None,
        api_module: str = API_MODULE,
    ) -> None:
        self.folder = scratch_folder("millrace-cluster-")
        self.services = Services(self.folder, redis_program=redis_program)
        self.apis: list[Member] = []
        self.workers: list[Member] = []
        self.billing: list[Member] = []
        self.maintenance: list[Member] = []
        self.batches: list[Member] = []
        self._counts = (num_apis, num_workers, num_billing, num_maintenance, num_batches)
        self._api_module = api_module
        self._engine = engine
        self._pool = pool
        self._device = device
        self._catalog = catalog
        self._environment = dict(environment or {})
        self._worker_environment = dict(worker_environment or {})
        self._exit = ExitStack()
        self._platform: Platform | None = None

    def __enter__(self) -> Self:
        with self._exit:
            self._exit.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self._exit.enter_context(self.services)
            self._exit.callback(self._kill_all)
            self._prepare()
            self._start_members()
            self._exit = self._exit.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exit.close()

    # Processes ------------------------------------------------------------------------------------

    @property
    def platform(self) -> Platform:
        assert self._platform is not None, "enter the cluster first"
        return self._platform

    @property
    def members(self) -> list[Member]:
        return [*self.apis, *self.workers, *self.billing, *self.maintenance, *self.batches]

    def add_api(self, *, wait: bool = True, environment: Mapping[str, str] | None = None) -> Member:
        name = _next_name("api", self.apis)
        port, metrics_port = ports.choose(), ports.choose()
        spec = processes.api(self.platform, port=port, metrics_port=metrics_port, name=name)
        argv = (self._api_module if word == API_MODULE else word for word in spec.argv)
        spec = replace(spec, argv=tuple(argv)).with_environment(environment or {})
        return self._add(self.apis, spec, wait)

    def add_worker(
        self,
        *,
        wait: bool = True,
        environment: Mapping[str, str] | None = None,
        pool: str | None = None,
    ) -> Member:
        """An inference worker. `environment` sets this one apart, such as a slower stub."""
        platform = replace(self.platform, pool=pool or self.platform.pool)
        name = _next_name("inference", self.workers)
        spec = processes.inference(platform, name=name, metrics_port=ports.choose())
        extra = {**self._worker_environment, **(environment or {})}
        return self._add(self.workers, spec.with_environment(extra), wait)

    def add_billing(self, *, wait: bool = True) -> Member:
        name = _next_name("billing", self.billing)
        spec = processes.billing(self.platform, name=name, metrics_port=ports.choose())
        return self._add(self.billing, spec, wait)

    def add_maintenance(self, *, wait: bool = True) -> Member:
        name = _next_name("maintenance", self.maintenance)
        spec = processes.maintenance(self.platform, name=name, metrics_port=ports.choose())
        return self._add(self.maintenance, spec, wait)

    def add_batches(self, *, wait: bool = True) -> Member:
        name = _next_name("batches", self.batches)
        spec = processes.batches(self.platform, name=name, metrics_port=ports.choose())
        return self._add(self.batches, spec, wait)

    def mend(self) -> None:
        """All run again, whatever was killed or paused."""
        if self.services.redis.child is None:
            self.start_redis()
        for member in self.members:
            member.resume()
        dead = [member for member in self.members if not member.is_alive]
        for member in dead:
            member.start(wait=False)
        for member in dead:
            member.wait_ready()

    # Services -------------------------------------------------------------------------------------

    def kill_redis(self) -> None:
        """kill -9; `start_redis` brings it back, empty, on the same port."""
        if child := self.services.redis.child:
            child.kill()

    def start_redis(self) -> None:
        self.services.redis.start()

    def restart_redis_empty(self) -> None:
        self.kill_redis()
        self.start_redis()

    def pause_redis(self) -> None:
        """SIGSTOP: connections stay open and nobody answers."""
        if child := self.services.redis.child:
            child.send(signal.SIGSTOP)

    def resume_redis(self) -> None:
        if child := self.services.redis.child:
            child.send(signal.SIGCONT)

    def kill_postgres(self) -> None:
        """kill -9; `start_postgres` recovers what was committed, on the same port."""
        if child := self.services.postgres.child:
            child.kill()

    def start_postgres(self) -> None:
        self.services.postgres.start()

    # What a test asks and does --------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Of the first API replica."""
        return self.apis[0].url

    def create_tenant(
        self, name: str, *, credit_micros: int = 1_000_000_000, limits: Limits = NO_LIMITS
    ) -> Tenant:
        """A tenant with credit, and one key."""
        with self.connect() as connection:
            tenant_id = tenants.create_tenant(
                connection, name=name, credit_micros=credit_micros, limits=limits
            )
            key = tenants.create_api_key(
                connection, tenant_id=tenant_id, name="test", pepper=self.platform.pepper.encode()
            )
        return Tenant(tenant_id, name, key)

    def http(self, tenant: Tenant, *, api: int = 0) -> httpx.Client:
        """A plain HTTP client of one replica; close it, or use it in a `with`."""
        return httpx.Client(
            base_url=self.apis[api].url, headers=tenant.headers, timeout=30.0, trust_env=False
        )

    def connect(self) -> psycopg.Connection[dict[str, Any]]:
        """To Postgres as the owner, who sees every tenant. Autocommit."""
        return psycopg.Connection[dict[str, Any]].connect(
            self.platform.database.owner, autocommit=True, row_factory=dict_row
        )

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Rows as dictionaries."""
        with self.connect() as connection:
            return connection.execute(statement.encode(), parameters).fetchall()

    def redis(self) -> redis.Redis:
        """A client of the cluster's Redis; close it, or use it in a `with`."""
        return redis.Redis.from_url(self.platform.redis_url, decode_responses=True)

    def wait_until(
        self, is_true: Callable[[], object], *, timeout_s: float = 30.0, what: str = "condition"
    ) -> None:
        """Ask until it is true; on time-out an AssertionError with the end of every log."""
        deadline = time.monotonic() + timeout_s
        while not is_true():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} not met within {timeout_s:g} s\n{self.logs()}")
            time.sleep(0.05)

    def logs(self) -> str:
        return "\n".join(f"--- {member.name}\n{member.log}" for member in self.members)

    # Private --------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        self._platform = Platform(
            state_dir=self.folder,
            database=self.services.fresh_database(),
            redis_url=self.services.redis_url,
            pepper=secrets.token_urlsafe(32),
            extra=self._environment,
            engine=self._engine,
            pool=self._pool,
            device=self._device,
        )
        with self.connect() as connection:
            apply_catalog(connection, self._catalog)

    def _start_members(self) -> None:
        """All at once: they import and load side by side."""
        adders = (
            self.add_api,
            self.add_worker,
            self.add_billing,
            self.add_maintenance,
            self.add_batches,
        )
        for add, count in zip(adders, self._counts, strict=True):
            for _ in range(count):
                add(wait=False)
        for member in self.members:
            member.wait_ready()

    def _add(self, members: list[Member], spec: ProcessSpec, wait: bool) -> Member:
        member = Member(self.platform, replace(spec, death_signal=signal.SIGKILL))
        members.append(member)
        member.start(wait=wait)
        return member

    def _kill_all(self) -> None:
        for member in self.members:
            member.kill()


def _next_name(kind: str, members: list[Member]) -> str:
    return f"{kind}-{len(members) + 1}"
