"""A warm process that runs tests: others' packages are loaded once, then each run is a fork.

Reads one request a line and writes one answer a line, both JSON. It must import nothing of ours,
since every run is to load it from the files as they are then.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import hypothesis
import pytest

_OTHERS = (
    "alembic",
    "celery",
    "celery.bin.worker",
    "fastapi",
    "fsspec",
    "httpx",
    "jinja2",
    "kombu",
    "llguidance",
    "openai",
    "orjson",
    "prometheus_client",
    "psutil",
    "psycopg",
    "psycopg_pool",
    "pydantic_settings",
    "pytest_asyncio",
    "pytest_timeout",
    "redis.asyncio",
    "sqlalchemy",
    "structlog",
    "tokenizers",
    "uvicorn",
)
_OUTPUT_KEPT = 20_000  # characters
_POLL_S = 0.02


class OnlyThese:
    """A pytest plugin that leaves out every test but some."""

    def __init__(self, names: set[str]) -> None:
        self._names = names

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        wanted = [item for item in items if not self._names or item.nodeid in self._names]
        left_out = [item for item in items if self._names and item.nodeid not in self._names]
        config.hook.pytest_deselected(items=left_out)
        items[:] = wanted


def main() -> None:
    for name in _OTHERS:
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


def _run(request: dict[str, Any]) -> dict[str, Any]:
    """Run files of tests in a fork; `code` is pytest's exit code, None after a time-out."""
    began = time.monotonic()
    output = Path(request["output"])
    pid = os.fork()
    if pid == 0:
        _become_pytest(request, output)
    code = _wait(pid, request["limit_s"])
    seconds = time.monotonic() - began
    return {"code": code, "seconds": seconds, "output": output.read_text()[-_OUTPUT_KEPT:]}


def _forget_hypothesis_deadlines() -> None:
    """A machine that is busy, or a trace, is slow, and that proves nothing here."""
    settings = hypothesis.settings
    checks = list(hypothesis.HealthCheck)
    settings.register_profile("mutants", deadline=None, suppress_health_check=checks)
    settings.load_profile("mutants")


def _become_pytest(request: dict[str, Any], output: Path) -> None:
    """Never returns."""
    code = 3
    try:
        os.setsid()
        target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(target, 1)
        os.dup2(target, 2)
        _forget_hypothesis_deadlines()
        plugins: list[object] = [OnlyThese(set(request["tests"]))]
        if request["trace"]:
            from tests.mutants.tracing import Tracing  # noqa: PLC0415 (in the fork alone)

            plugins.append(Tracing(Path.cwd(), Path(request["trace"])))
        arguments = ["-q", "--assert=plain", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
        arguments += [] if request["trace"] else ["-x"]
        code = int(pytest.main([*arguments, *request["files"]], plugins=plugins))
    finally:
        sys.stdout.flush()
        os._exit(code)


def _wait(pid: int, limit_s: float) -> int | None:
    """None after a time-out, or if nobody waits for the answer any more."""
    parent = os.getppid()
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and os.getppid() == parent:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(_POLL_S)
    os.killpg(pid, signal.SIGKILL)  # it leads a session of its own
    os.waitpid(pid, 0)
    return None


if __name__ == "__main__":
    main()
