"""Keeps the processes of one platform running, and ends exactly what it started.

One thread watches; the main thread only starts and stops it. Services (Postgres, Redis) and
processes are alike to it: something with a name that can be started and that may die.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from cli.stack.child import Child, kill_group, start_moment
from cli.stack.errors import StackError
from cli.stack.state import ProcessRecord, Running, StateFolder

log = structlog.get_logger(__name__)

SERVICES = ("postgres", "redis")  # adopted by the next start, not ended by it
_POLL_S = 0.1
_FILES_S = 2.0  # between two looks at how large logs are, and two tries to write the record
_FIRST_DELAY_S = 0.5
_MAX_DELAY_S = 30.0
_HEALTHY_AFTER_S = 60.0  # a process that ran this long starts again without delay
_STALE_GRACE_S = 5.0  # for what an earlier supervisor left behind; its jobs are requeued anyway


@dataclass(slots=True)
class Backoff:
    """Delays between restarts: doubling, and short again once it has stayed up."""

    next_s: float = _FIRST_DELAY_S

    def after(self, uptime_s: float) -> float:
        """How long to wait before the next start, given how long the last one lasted."""
        delay = _FIRST_DELAY_S if uptime_s >= _HEALTHY_AFTER_S else self.next_s
        self.next_s = min(delay * 2, _MAX_DELAY_S)
        return delay


@dataclass(slots=True)
class Unit:
    """One thing to keep running. `stop_order`: lower stops first; equal ones stop together."""

    name: str
    start: Callable[[], Child]
    log_path: Path
    stop_order: int
    stop_signal: int = signal.SIGTERM
    grace_s: float = 10.0
    on_death: Callable[[Child], None] = lambda child: None
    url: str | None = None
    # Kept by the supervisor:
    child: Child | None = None
    started_at: float = 0.0  # Unix time
    up_since: float = 0.0  # monotonic
    restart_at: float | None = None  # monotonic
    num_restarts: int = 0
    backoff: Backoff = field(default_factory=Backoff)


class Supervisor:
    """`add` starts a unit; `watch` begins to restart dead ones; `stop` ends them all, in order."""

    def __init__(
        self,
        state: StateFolder,
        *,
        report: Callable[[str], None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._state = state
        self._report = report or (lambda line: None)
        self._units: list[Unit] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        pid = os.getpid()
        self._save_at: float | None = None  # monotonic; None: the record says what is so
        self._logs_due = 0.0  # monotonic
        own = ProcessRecord("supervisor", pid, start_moment(pid) or "", time.time())
        self._running = Running(
            state_dir=str(state.path), supervisor=own, options=dict(options or {})
        )

    def add(self, unit: Unit) -> Child:
        """Start it now. The caller waits for its readiness."""
        self._units.append(unit)  # first: an interrupt from here on must find it
        self._start(unit)
        self._save()
        assert unit.child is not None
        return unit.child

    def watch(self) -> None:
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._thread.start()

    def set_ready(self, addresses: dict[str, str]) -> None:
        self._running.is_ready = True
        self._running.addresses = addresses
        self._save()

    def stop(self, *, is_urgent: bool = False) -> None:
        """End all units in their order. is_urgent: no grace for any but the services."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        orders = sorted({unit.stop_order for unit in self._units})
        for order in orders:
            units = [unit for unit in self._units if unit.stop_order == order]
            stop_together(
                [(unit.child, unit.stop_signal, unit.grace_s) for unit in units if unit.child],
                is_urgent=is_urgent and order != orders[-1],
            )
        self._state.clear_running()

    def _watch(self) -> None:
        while not self._stopping.wait(_POLL_S):
            for unit in self._units:
                self._try(partial(self._check, unit), unit.name)
            self._try(self._save_changes, "state")
            if time.monotonic() >= self._logs_due:
                self._logs_due = time.monotonic() + _FILES_S
                self._try(self._state.bound_logs, "logs")

    def _try(self, work: Callable[[], None], name: str) -> None:
        """Nothing that goes wrong with one of them, such as a full disk, ends the watch."""
        try:
            work()
        except Exception:
            log.exception("watch_failed", name=name)

    def _check(self, unit: Unit) -> None:
        if unit.child is not None and unit.child.is_alive:
            return
        if unit.restart_at is None:
            self._note_death(unit)
        elif time.monotonic() >= unit.restart_at:
            self._restart(unit)

    def _note_death(self, unit: Unit) -> None:
        delay_s = unit.backoff.after(time.monotonic() - unit.up_since)
        unit.restart_at = time.monotonic() + delay_s
        exit_code = unit.child.exit_code if unit.child else None
        log.warning("process_died", name=unit.name, exit_code=exit_code, restart_in_s=delay_s)
        if unit.child is not None:
            unit.child.kill()  # what it started, such as the beat of a maintenance worker
            self._try(partial(unit.on_death, unit.child), unit.name)
        self._report(f"{unit.name} died, starting it again in {delay_s:g} s, see {unit.log_path}")

    def _restart(self, unit: Unit) -> None:
        try:
            self._start(unit)
        except Exception as error:  # whatever it was: it isn't tried ten times a second
            unit.restart_at = time.monotonic() + unit.backoff.after(0.0)
            is_known = isinstance(error, StackError | OSError)
            log.warning(
                "process_not_started", name=unit.name, error=str(error), exc_info=not is_known
            )
            return
        unit.num_restarts += 1
        with self._lock:
            self._save_at = 0.0
        log.info("process_restarted", name=unit.name, num_restarts=unit.num_restarts)

    def _start(self, unit: Unit) -> None:
        unit.child = unit.start()
        unit.restart_at = None
        unit.started_at = time.time()
        unit.up_since = time.monotonic()

    def _save_changes(self) -> None:
        save_at = self._save_at
        if save_at is not None and time.monotonic() >= save_at:
            self._save()

    def _save(self) -> None:
        with self._lock:
            self._save_at = time.monotonic() + _FILES_S  # if it fails
            self._running.processes = [_record(unit) for unit in self._units if unit.child]
            self._state.write_running(self._running)
            self._save_at = None


def stop_together(children: Sequence[tuple[Child, int, float]], *, is_urgent: bool = False) -> None:
    """Signal all, then wait for each up to its own grace, then kill what is left."""
    started = time.monotonic()
    for child, number, _ in children:
        child.send(signal.SIGKILL if is_urgent else number)
    for child, _, grace_s in children:
        child.wait(max(0.0, started + grace_s - time.monotonic()))
        child.kill()


def end_leftovers(running: Running, *, keep: Collection[str]) -> list[ProcessRecord]:
    """End what an earlier supervisor that was killed left running. Returns what had to be ended.

    keep: names of services, which the next start finds and adopts by itself.
    """
    records = [record for record in running.processes if record.name not in keep]
    found = [(record, child) for record in records if (child := record.find())]
    stop_together([(child, signal.SIGTERM, _STALE_GRACE_S) for _, child in found])
    for record in records:
        kill_group(record.pid)
    return [record for record, _ in found]


def _record(unit: Unit) -> ProcessRecord:
    assert unit.child is not None
    return ProcessRecord(
        name=unit.name,
        pid=unit.child.pid,
        started=unit.child.started,
        started_at=unit.started_at,
        num_restarts=unit.num_restarts,
        log=str(unit.log_path),
        url=unit.url,
    )
