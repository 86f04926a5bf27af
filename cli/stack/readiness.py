"""Is a started process ready? One question each, asked again until a deadline."""

from __future__ import annotations

import contextlib
import socket
import time
from functools import lru_cache
from typing import Any

import httpx
import psycopg
from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from cli.stack.child import Child, tail
from cli.stack.errors import StackError
from cli.stack.processes import Platform, ProcessSpec, Readiness
from tasks.settings import broker_transport_options

# Loading a large model from a slow disk has 10 min in the worker; all else is quick.
_TIMEOUT_S = {Readiness.LEASE: 620.0}
_DEFAULT_TIMEOUT_S = 60.0
_POLL_S = 0.1
_PING_TIMEOUT_S = 0.5


def wait_ready(platform: Platform, spec: ProcessSpec, child: Child) -> None:
    """Returns when it is ready; raises StackError if it ends or takes too long."""
    deadline = time.monotonic() + _TIMEOUT_S.get(spec.readiness, _DEFAULT_TIMEOUT_S)
    while not is_ready(platform, spec, child):
        if not child.is_alive:
            raise StackError(
                f"{spec.name} ended while it started, see {spec.log_path}:\n{tail(spec.log_path)}"
            )
        if time.monotonic() > deadline:
            raise StackError(
                f"{spec.name} is not ready in time, see {spec.log_path}:\n{tail(spec.log_path)}"
            )
        child.wait(_POLL_S)


def is_ready(platform: Platform, spec: ProcessSpec, child: Child) -> bool:
    """Asked once, bounded by a second or two."""
    if spec.readiness is Readiness.LEASE and not has_lease(platform, child.pid):
        return False
    if spec.node is not None:
        return spec.node in nodes(platform.redis_url, spec.node)
    assert spec.url is not None
    return _answers(spec.url + "/livez" if spec.readiness is Readiness.HTTP else spec.url)


def has_lease(platform: Platform, pid: int) -> bool:
    """A live lease means: models are loaded, the worker takes jobs."""
    query = "SELECT 1 FROM worker_leases WHERE hostname = %s AND pid = %s AND expires_at > now()"
    with contextlib.suppress(psycopg.Error), psycopg.connect(platform.database.owner) as connection:
        return connection.execute(query, [socket.gethostname(), pid]).fetchone() is not None
    return False


def nodes(redis_url: str, node: str | None = None) -> set[str]:
    """The Celery workers that answer, of all or of one."""
    with contextlib.suppress(OSError, OperationalError, RedisError):
        replies = _control(redis_url).control.ping(
            destination=[node] if node else None, timeout=_PING_TIMEOUT_S, limit=1 if node else None
        )
        return {name for reply in replies or [] for name in reply}
    return set()


@lru_cache(maxsize=4)
def _control(redis_url: str) -> Any:
    """A Celery application that only asks; Celery has no types."""
    app = Celery("millrace-control", broker=redis_url, set_as_current=False)
    app.conf.update(broker_transport_options=broker_transport_options, result_backend=None)
    return app


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=2.0, trust_env=False).status_code < 500
    return False
