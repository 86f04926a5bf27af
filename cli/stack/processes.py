"""THE table of processes: how each is started, with what environment, and when it counts as ready.

`make up`, its supervisor and tests/support/cluster.py all start processes from here.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from cli.stack.child import STATE_VARIABLE, Child, spawn
from cli.stack.database import DatabaseUrls, role_environment
from cli.stack.files import ROOT

# Never inherited: a process is told addresses and secrets by its role. Other settings pass through.
_ADDRESSES = (
    "MILLRACE_DATABASE_URL",
    "MILLRACE_REDIS_URL",
    "MILLRACE_BROKER_URL",
    "MILLRACE_STREAM_URL",
    "MILLRACE_LIMITS_URL",
    "MILLRACE_KEY_PEPPER",
    "MILLRACE_METRICS_PORT",
    "MILLRACE_URL",
    "MILLRACE_API_KEY",
)


class Readiness(StrEnum):
    """What to wait for after a start."""

    HTTP = "http"  # its /livez answers
    LEASE = "lease"  # its lease stands in Postgres (models are loaded), and it answers a ping
    PING = "ping"  # it answers Celery's ping
    PAGE = "page"  # its port answers anything


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Where everything is. One value describes one running Millrace."""

    state_dir: Path
    database: DatabaseUrls
    redis_url: str
    pepper: str  # of API key hashes
    pool: str = "default"
    device: str = "auto"
    engine: str = "millrace"
    redis_urls: Mapping[str, str] = field(default_factory=dict)  # broker, stream, limits, if split
    extra: Mapping[str, str] = field(default_factory=dict)  # added to every process

    def environment(self, role: str) -> dict[str, str]:
        """Of a process that connects to Postgres as `role`."""
        kept = {k: value for k, value in os.environ.items() if not k.startswith(_ADDRESSES)}
        urls = {f"MILLRACE_{name.upper()}_URL": url for name, url in self.redis_urls.items()}
        defaults = {"MILLRACE_FILES_URL": str(self.state_dir / "files")}
        ours = {
            STATE_VARIABLE: str(self.state_dir),
            "MILLRACE_REDIS_URL": self.redis_url,
            "MILLRACE_POOL": self.pool,
            "PYTHONUNBUFFERED": "1",
        }
        addresses = urls | role_environment(self.database, role)
        return defaults | kept | ours | addresses | dict(self.extra)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One row of the table."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)  # holds passwords
    readiness: Readiness
    log_path: Path
    port: int | None = None  # of its HTTP server
    node: str | None = None  # its name in Celery
    death_signal: int | None = None

    @property
    def url(self) -> str | None:
        return f"http://127.0.0.1:{self.port}" if self.port else None

    def spawn(self) -> Child:
        return spawn(
            self.argv,
            env=self.environment,
            log_path=self.log_path,
            cwd=ROOT,
            death_signal=self.death_signal,
        )

    def dying_with_parent(self) -> ProcessSpec:
        """It drains when its supervisor is killed, so that nothing is left running."""
        return replace(self, death_signal=signal.SIGTERM)

    def with_environment(self, extra: Mapping[str, str]) -> ProcessSpec:
        return replace(self, environment={**self.environment, **extra})


def api(platform: Platform, *, port: int, metrics_port: int, name: str = "api") -> ProcessSpec:
    """Stateless: run as many as you like. The only process that knows the pepper."""
    argv = ["-m", "api.server", "--host", "127.0.0.1", "--port", str(port)]
    extra = {
        "MILLRACE_KEY_PEPPER": platform.pepper,
        "MILLRACE_METRICS_PORT": str(metrics_port),
    }
    return ProcessSpec(
        name=name,
        argv=(sys.executable, *argv),
        environment=platform.environment("api") | extra,
        readiness=Readiness.HTTP,
        log_path=_log_path(platform, name),
        port=port,
    )


def inference(platform: Platform, *, name: str = "inference", metrics_port: int) -> ProcessSpec:
    """One a device. It subscribes to the lanes of its pool by itself, so there is no -Q."""
    extra = {
        "CELERY_CUSTOM_WORKER_POOL": "workers.inference.pool:TaskPool",
        "MILLRACE_ENGINE": platform.engine,
        "MILLRACE_DEVICE": platform.device,
        "MILLRACE_METRICS_PORT": str(metrics_port),
    }
    argv = ["-P", "custom", "-I", "workers.inference.handler"]
    spec = _celery(platform, name, argv, role="worker", readiness=Readiness.LEASE)
    return spec.with_environment(extra)


def billing(platform: Platform, *, name: str = "billing", metrics_port: int) -> ProcessSpec:
    """Settles finished jobs. Any number of copies."""
    argv = ["-P", "threads", "-c", "4", "-I", "billing.usage", "-Q", "billing"]
    spec = _celery(platform, name, argv, role="billing", readiness=Readiness.PING)
    return spec.with_environment({"MILLRACE_METRICS_PORT": str(metrics_port)})


def maintenance(platform: Platform, *, name: str = "maintenance", metrics_port: int) -> ProcessSpec:
    """Reaper, re-hinter, retention. Any number of copies: they take turns by advisory locks."""
    schedule = str(platform.state_dir / f"beat-schedule-{name}")
    argv = ["-P", "threads", "-c", "4", "-B", "-s", schedule]
    argv += ["-I", "workers.maintenance", "-Q", "maintenance"]
    spec = _celery(platform, name, argv, role="worker", readiness=Readiness.PING)
    return spec.with_environment({"MILLRACE_METRICS_PORT": str(metrics_port)})


def batches(platform: Platform, *, name: str = "batches", metrics_port: int) -> ProcessSpec:
    """Runs batch files. Any number of copies: each batch is leased by one. It admits lines as the
    API does, so it connects as both roles.
    """
    argv = ["-P", "threads", "-c", "1", "-I", "workers.batches", "-Q", "batches"]
    spec = _celery(platform, name, argv, role="worker", readiness=Readiness.PING)
    urls = {**role_environment(platform.database, "api"), **spec.environment}
    return spec.with_environment({**urls, "MILLRACE_METRICS_PORT": str(metrics_port)})


def flower(platform: Platform, *, port: int, user: str, password: str) -> ProcessSpec:
    """Shows, changes nothing. The password is in its environment: arguments are public."""
    argv = ["-m", "celery", "-A", "tasks.app", "flower", "--address=127.0.0.1", f"--port={port}"]
    argv += ["--read_only", "--max_tasks=10000"]
    extra = {"FLOWER_BASIC_AUTH": f"{user}:{password}"}
    return ProcessSpec(
        name="flower",
        argv=(sys.executable, *argv),
        environment=platform.environment("api") | extra,
        readiness=Readiness.PAGE,
        log_path=_log_path(platform, "flower"),
        port=port,
    )


def _celery(
    platform: Platform, name: str, argv: list[str], *, role: str, readiness: Readiness
) -> ProcessSpec:
    command = ["-m", "celery", "-A", "tasks.app", "worker", *argv]
    command += ["--without-gossip", "--without-mingle", "-n", f"{name}@%h", "-l", "INFO"]
    return ProcessSpec(
        name=name,
        argv=(sys.executable, *command),
        environment=platform.environment(role),
        readiness=readiness,
        log_path=_log_path(platform, name),
        node=f"{name}@{socket.gethostname()}",
    )


def _log_path(platform: Platform, name: str) -> Path:
    return platform.state_dir / "logs" / f"{name}.log"
