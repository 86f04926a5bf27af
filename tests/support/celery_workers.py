"""A single Celery worker as a real process, on a database of a test and any Redis."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cli.stack.child import Child, spawn
from cli.stack.database import DatabaseUrls, role_environment

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def celery_worker(
    *args: str,
    urls: DatabaseUrls,
    role: str,
    redis_url: str,
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Child]:
    """Runs until the block ends; must then end by itself on SIGTERM."""
    command = [sys.executable, "-m", "celery", "-A", "tasks.app", "worker", *args]
    command += ["--without-gossip", "--without-mingle", "-c", "2", "-l", "INFO"]
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    child = spawn(
        command,
        env={
            **inherited,
            "MILLRACE_REDIS_URL": redis_url,
            **role_environment(urls, role),
            **(environment or {}),
        },
        log_path=folder / f"{role}.log",
        cwd=ROOT,
        death_signal=signal.SIGKILL,
    )
    try:
        yield child
    finally:
        is_ended = child.stop(signal.SIGTERM, grace_s=15)
    assert is_ended, (folder / f"{role}.log").read_text()
