"""How a drain spends its time: waiting, then ending, then giving up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from psycopg import OperationalError

from store import leases
from tasks.ids import uuid7
from tests.unit.worker.test_job_stream import new_stream
from workers.inference import drain as draining
from workers.inference.drain import END_S, Drain
from workers.inference.runtime import RunningJob, Runtime
from workers.inference.settings import WorkerSettings

DRAIN_S = 25.0


class _Clock:
    """Time passes only while somebody sleeps; things happen at their moments."""

    def __init__(self) -> None:
        self.now = 100.0
        self.num_sleeps = 0
        self._events: list[tuple[float, Callable[[], object]]] = []

    def after(self, seconds: float, happens: Callable[[], object]) -> None:
        self._events.append((self.now + seconds, happens))

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.num_sleeps += 1
        self.now += seconds
        due = [event for event in self._events if event[0] <= self.now]
        self._events = [event for event in self._events if event not in due]
        for _, happens in due:
            happens()


class _Worker:
    """A runtime with a clock: what was aborted when, and whether Postgres was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = _Clock()
        self.aborted: list[tuple[float, str]] = []
        self.told: list[object] = []
        self.is_away = False
        engine = SimpleNamespace(abort=self._abort)
        settings = WorkerSettings(drain_s=DRAIN_S)
        parts: Any = (engine, SimpleNamespace(connection=self._connection), None, None, uuid7())
        self.runtime = Runtime(settings, *parts)
        self.drain = Drain(self.runtime)
        monkeypatch.setattr(draining, "time", self.clock)
        monkeypatch.setattr(
            leases, "set_draining", lambda _, worker_id: self.told.append(worker_id)
        )

    @contextmanager
    def _connection(self) -> Iterator[str]:
        if self.is_away:
            raise OperationalError
        yield "connection"

    def _abort(self, request_id: str) -> None:
        self.aborted.append((self.clock.now, request_id))

    def run(self) -> RunningJob:
        job = RunningJob(new_stream(), self.runtime.worker_id)
        assert self.runtime.begin_attempt()
        self.runtime.add(job)
        return job

    def stop(self) -> float:
        """Drain, on this thread; how long it took."""
        began = self.clock.now
        self.runtime.draining.set()
        self.drain._run()
        return self.clock.now - began


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> _Worker:
    return _Worker(monkeypatch)


def _about(seconds: float) -> Any:
    return pytest.approx(seconds, abs=2 * draining.POLL_S)


@pytest.mark.parametrize("is_away", [False, True])
def test_a_worker_that_runs_nothing_ends_at_once(worker: _Worker, is_away: bool) -> None:
    worker.is_away = is_away

    assert worker.stop() == 0
    assert worker.told == ([] if is_away else [worker.runtime.worker_id])


def test_what_ends_in_time_is_neither_aborted_nor_given_up(worker: _Worker) -> None:
    job = worker.run()
    worker.clock.after(DRAIN_S - 1, worker.runtime.end_attempt)

    assert worker.stop() == _about(DRAIN_S - 1)
    assert worker.aborted == []
    assert not job.stream.is_fenced


def test_what_still_runs_is_aborted_again_and_again_until_it_ends(worker: _Worker) -> None:
    job = worker.run()
    began = worker.clock.now
    worker.clock.after(DRAIN_S + 1, worker.runtime.end_attempt)

    assert worker.stop() == _about(DRAIN_S + 1)
    moments = [moment - began for moment, _ in worker.aborted]
    assert (moments[0], moments[-1]) == (_about(DRAIN_S), _about(DRAIN_S + 1))
    assert len(moments) == pytest.approx(1 / draining.POLL_S, abs=2)
    assert {request_id for _, request_id in worker.aborted} == {job.request_id}
    assert not job.stream.is_fenced  # it went back by itself


def test_what_does_not_end_is_given_up(worker: _Worker) -> None:
    job = worker.run()

    assert worker.stop() == _about(DRAIN_S + END_S)
    assert job.stream.is_fenced
    assert worker.runtime.num_attempts == 1


def test_one_in_a_hurry_is_not_waited_for(worker: _Worker) -> None:
    worker.run()
    worker.clock.after(3, lambda: worker.drain.begin(is_urgent=True))
    worker.clock.after(4, worker.runtime.end_attempt)
    began = worker.clock.now

    assert worker.stop() == _about(4)
    assert worker.aborted[0][0] - began == _about(3)


def test_a_hurry_does_not_pass(worker: _Worker) -> None:
    worker.run()
    worker.runtime.draining.set()
    worker.drain.begin(is_urgent=True)
    worker.drain.begin()

    assert worker.stop() == _about(END_S)


def test_who_waits_for_a_drain_begins_it_without_hurry(worker: _Worker) -> None:
    worker.run()
    worker.clock.after(DRAIN_S - 1, worker.runtime.end_attempt)

    worker.drain.wait()

    assert worker.drain.has_begun
    assert not worker.drain._thread.is_alive()
    assert worker.runtime.num_attempts == 0
    assert worker.aborted == []
    assert not worker.runtime.begin_attempt()
