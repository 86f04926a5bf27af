"""One machine's Millrace from nothing to ready: services, database, processes, in that order."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from cli.catalog_checks import check_description
from cli.stack import ports, processes
from cli.stack.catalog import catalog_files
from cli.stack.child import Child
from cli.stack.database import DatabaseUrls, new_passwords, prepare
from cli.stack.demo import ensure_demo_tenant
from cli.stack.errors import StackError
from cli.stack.external import check_postgres, check_redis
from cli.stack.options import Report, Step, UpOptions
from cli.stack.postgres import EmbeddedPostgres
from cli.stack.processes import Platform, ProcessSpec, Readiness
from cli.stack.readiness import wait_ready
from cli.stack.redis import EmbeddedRedis
from cli.stack.state import StateFolder
from cli.stack.supervisor import SERVICES, Supervisor, Unit, end_leftovers
from store.catalog import apply_catalog
from store.catalog_file import CatalogError
from store.leases import expire_process, list_live, refusals_of
from store.pools import connect
from workers.inference.settings import WorkerSettings

FLOWER_USER = "millrace"
_API_PORT = 8000
_FLOWER_PORT = 5555
_API_GRACE_S = 15.0
_SERVICE_GRACE_S = 25.0
_SPLIT_URLS = ("broker", "stream", "limits")


class Stack:
    """`start` once, `stop` in any case. The caller holds the state folder's lock."""

    def __init__(self, state: StateFolder, options: UpOptions, report: Report) -> None:
        self._state = state
        self._options = options
        self._report = report
        self._supervisor = Supervisor(
            state, report=partial(report, Step.NOTE), options=asdict(options)
        )
        self._postgres = EmbeddedPostgres(state.path)
        self._redis = EmbeddedRedis(state.path)

    def start(self) -> None:
        """Returns when a job can be sent. Raises StackError, whose text says what to do."""
        self._end_leftovers()
        self._check_port()
        owner_url = self._start_postgres()
        redis_url = self._start_redis()
        platform = self._platform(owner_url, redis_url)
        self._prepare_database(platform)
        self._start_processes(platform)

    def stop(self, *, is_urgent: bool = False) -> None:
        """Drain and end all that was started. External services are left alone."""
        self._supervisor.stop(is_urgent=is_urgent)

    def _end_leftovers(self) -> None:
        """After a kill -9 of the supervisor its children may still run."""
        previous = self._state.read_running()
        for record in end_leftovers(previous, keep=SERVICES) if previous else []:
            self._report(Step.NOTE, f"ended {record.name} (pid {record.pid}) of an earlier run")

    def _start_postgres(self) -> str:
        if url := os.environ.get("MILLRACE_DATABASE_URL"):
            check_postgres(url)
            self._report(Step.DONE, "Postgres: yours, by MILLRACE_DATABASE_URL")
            return url
        self._report(Step.BEGIN, "starting Postgres")
        self._add_service("postgres", self._postgres, signal.SIGINT)
        self._report(Step.DONE, f"Postgres on 127.0.0.1:{self._postgres.port}")
        return self._postgres.url()

    def _start_redis(self) -> str:
        if url := os.environ.get("MILLRACE_REDIS_URL"):
            check_redis(url)
            self._report(Step.DONE, "Redis: yours, by MILLRACE_REDIS_URL")
            return url
        self._report(Step.BEGIN, "starting Redis")
        self._add_service("redis", self._redis, signal.SIGTERM)
        self._report(Step.DONE, f"Redis on 127.0.0.1:{self._redis.port}")
        return self._redis.url

    def _add_service(
        self, name: str, service: EmbeddedPostgres | EmbeddedRedis, stop_signal: int
    ) -> None:
        def start() -> Child:
            service.start()
            assert service.child is not None
            return service.child

        self._supervisor.add(
            Unit(
                name=name,
                start=start,
                log_path=service.log_path,
                stop_order=2,
                stop_signal=stop_signal,
                grace_s=_SERVICE_GRACE_S,
            )
        )

    def _platform(self, owner_url: str, redis_url: str) -> Platform:
        urls = DatabaseUrls.from_environment(os.environ)
        if urls is None:
            urls = DatabaseUrls.with_passwords(owner_url, self._passwords())
        names = ((name, f"MILLRACE_{name.upper()}_URL") for name in _SPLIT_URLS)
        return Platform(
            state_dir=self._state.path,
            database=urls,
            redis_url=redis_url,
            redis_urls={name: os.environ[key] for name, key in names if os.environ.get(key)},
            pepper=self._state.secret("key_pepper"),
            pool=os.environ.get("MILLRACE_POOL", "default"),
            device=self._options.device,
            engine=self._options.engine,
        )

    def _passwords(self) -> dict[str, str]:
        return {role: self._state.secret(f"password:{role}") for role in new_passwords()}

    def _prepare_database(self, platform: Platform) -> None:
        self._report(Step.BEGIN, "preparing the database")
        is_external = DatabaseUrls.from_environment(os.environ) is not None
        try:
            prepare(platform.database, None if is_external else self._passwords())
            with connect(platform.database.owner, application_name="millrace-up") as connection:
                files = catalog_files(self._state, self._options)
                apply_catalog(connection, files, check=check_description)
                ensure_demo_tenant(connection, self._state)
        except CatalogError as error:
            raise StackError(f"the catalog can't be loaded: {error}") from None
        self._report(Step.DONE, "database migrated, catalog loaded, demo tenant and key at hand")

    def _start_processes(self, platform: Platform) -> None:
        api_metrics = ports.choose()
        api = processes.api(platform, port=self._api_port(), metrics_port=api_metrics)
        flower = processes.flower(
            platform,
            port=ports.next_free(_FLOWER_PORT),
            user=FLOWER_USER,
            password=self._state.secret("flower_password"),
        )
        workers = [
            processes.inference(platform, metrics_port=ports.choose()),
            processes.billing(platform, metrics_port=ports.choose()),
            processes.maintenance(platform, metrics_port=ports.choose()),
            processes.batches(platform, metrics_port=ports.choose()),
        ]
        specs = [*workers, api, flower]
        self._report(Step.BEGIN, "starting API, workers and Flower; loading models")
        children = [self._supervisor.add(self._unit(platform, spec)) for spec in specs]
        for spec, child in zip(specs, children, strict=True):
            wait_ready(platform, spec, child)
            self._report(Step.DONE, spec.name + (f" on {spec.url}" if spec.url else ""))
        self._report_refused(platform)
        self._supervisor.watch()
        addresses = {"api": api.url or "", "flower": flower.url or ""}
        metrics = f"http://127.0.0.1:{api_metrics}/metrics"
        self._supervisor.set_ready(addresses | {"metrics": metrics})

    def _report_refused(self, platform: Platform) -> None:
        with connect(platform.database.owner, application_name="millrace-up") as connection:
            for model, reason in refusals_of(list_live(connection)).items():
                self._report(Step.NOTE, f"model {model} is not served: {reason}")

    def _unit(self, platform: Platform, spec: ProcessSpec) -> Unit:
        is_api = spec.readiness is Readiness.HTTP
        spec = spec.dying_with_parent()
        return Unit(
            name=spec.name,
            start=spec.spawn,
            log_path=spec.log_path,
            stop_order=0 if is_api else 1,
            grace_s=_API_GRACE_S if is_api else WorkerSettings().stop_grace_s,
            on_death=_expire_lease(platform) if spec.readiness is Readiness.LEASE else _ignore,
            url=spec.url,
        )

    def _api_port(self) -> int:
        if self._options.port is None:
            return ports.next_free(_API_PORT)
        return self._options.port

    def _check_port(self) -> None:
        port = self._options.port
        if port is not None and (reason := ports.refusal(port)):
            raise StackError(f"port {port} {reason}: leave PORT out and Millrace finds one")


def _ignore(child: Child) -> None:
    """Nothing waits for this process."""


def _expire_lease(platform: Platform) -> Callable[[Child], None]:
    """Its jobs go to another attempt at once, instead of when the lease runs out."""

    def expire(child: Child) -> None:
        with connect(platform.database.owner, application_name="millrace-up") as connection:
            expire_process(connection, hostname=socket.gethostname(), pid=child.pid)

    return expire


def open_state(path: Path | None = None) -> StateFolder:
    """The state folder, made if there is none."""
    state = StateFolder(path) if path else StateFolder.default()
    state.create()
    return state
