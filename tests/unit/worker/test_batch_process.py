"""How a batch worker's process begins and ends, without any connection."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from workers.batches import process
from workers.batches.process import DriverThread, use_threads


@pytest.fixture(autouse=True)
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Logs and the metrics' port are the process's: what was begun of them."""
    begun: list[str] = []
    monkeypatch.setattr(process, "configure_logs", lambda: begun.append("logs"))
    monkeypatch.setattr(process, "serve_metrics", lambda: begun.append("metrics"))
    return begun


class _Driver:
    """Runs until it is cancelled, in between two statements."""

    def __init__(self) -> None:
        self.runs = threading.Event()
        self.ended: list[str] = []

    async def main(self, thread: DriverThread) -> None:
        thread._task = asyncio.current_task()
        self.runs.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.append(threading.current_thread().name)


def _thread(monkeypatch: pytest.MonkeyPatch, driver: _Driver) -> DriverThread:
    thread = DriverThread(cast(Any, SimpleNamespace()))
    monkeypatch.setattr(thread, "_main", lambda: driver.main(thread))
    return thread


def test_a_driver_runs_beside_celery_until_the_worker_stops(
    monkeypatch: pytest.MonkeyPatch, begun: list[str]
) -> None:
    driver = _Driver()
    thread = _thread(monkeypatch, driver)

    thread.start(None)
    assert driver.runs.wait(10)
    thread.stop(None)

    assert driver.ended == ["batch-driver"]
    assert begun == ["metrics"]
    assert not thread._thread.is_alive()
    assert thread._thread.daemon


def test_a_worker_that_stops_before_its_driver_began_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    may_begin = threading.Event()
    thread = DriverThread(cast(Any, SimpleNamespace()))

    async def main() -> None:
        may_begin.wait(10)

    monkeypatch.setattr(thread, "_main", main)
    thread.start(None)
    stopping = threading.Thread(target=thread.stop, args=(None,))
    stopping.start()
    may_begin.set()
    stopping.join(10)

    assert not stopping.is_alive()
    assert not thread._thread.is_alive()


@pytest.mark.parametrize("has_mallopt", [True, False])
def test_tasks_run_on_threads_and_memory_is_given_back(
    monkeypatch: pytest.MonkeyPatch, begun: list[str], has_mallopt: bool
) -> None:
    said: list[tuple[int, int]] = []
    libc = SimpleNamespace(mallopt=lambda *words: said.append(words)) if has_mallopt else object()
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: libc)
    worker = SimpleNamespace(pool_cls="prefork")

    use_threads(worker)

    assert (worker.pool_cls, begun) == ("threads", ["logs"])
    # Two arenas; blocks of 128 KiB and more are mapped one by one, and what is free is returned.
    assert said == ([(-8, 2), (-3, 131_072), (-1, 131_072)] if has_mallopt else [])
