"""What a ticket and a look for work claim, and that each attempt is counted to its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from celery.signals import worker_init
from psycopg import OperationalError
from structlog.testing import capture_logs

from store.attempts import Claimed
from tasks.app import app
from tasks.ids import uuid7
from tests.support.waiting import wait_until
from tests.unit.worker.test_job_stream import new_stream
from workers.inference import bootstrap, handler
from workers.inference.handler import IdleLook, generate
from workers.inference.runtime import Runtime
from workers.inference.settings import WorkerSettings

JOB = uuid7()


class _Worker:
    """A runtime whose claims give what they are told to; and what was run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[UUID, Any]] = []
        self.ran: list[tuple[Claimed, UUID, int]] = []
        self.answers: list[Claimed | Exception | None] = []
        self.may_end = threading.Event()
        self.may_end.set()
        engine, pool = SimpleNamespace(max_num_seqs=2), SimpleNamespace(connection=self._connection)
        parts: Any = (engine, pool, None, None, uuid7())
        self.runtime = Runtime(WorkerSettings(pool="demo"), *parts)
        monkeypatch.setattr(bootstrap, "_runtime", self.runtime)
        monkeypatch.setattr(handler, "claim_ticket", self._claim)
        monkeypatch.setattr(handler, "claim_any", self._claim)
        monkeypatch.setattr(handler, "StreamWriter", lambda streams: ("writer", streams))
        monkeypatch.setattr(handler, "run_job", self._run)

    @contextmanager
    def _connection(self) -> Iterator[str]:
        yield "connection"

    def _claim(self, connection: str, worker_id: UUID, what: Any) -> Claimed | None:
        assert connection == "connection"
        assert self.runtime.num_attempts > 0  # a stop waits for it from here on
        self.asked.append((worker_id, what))
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _run(self, _runtime: Runtime, writer: Any, claimed: Claimed, worker_id: UUID) -> None:
        assert writer == ("writer", None)
        self.ran.append((claimed, worker_id, self.runtime.num_attempts))
        self.may_end.wait(10)
        if claimed.model == "broken":
            raise ZeroDivisionError


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> _Worker:
    return _Worker(monkeypatch)


def _claimed() -> Claimed:
    return new_stream().claimed


def _look(worker: _Worker) -> IdleLook:
    return IdleLook(worker.runtime, interval_s=0.001)


def test_a_ticket_runs_what_it_claims_under_the_lease_it_was_claimed_under(
    worker: _Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.answers, old = [claimed := _claimed()], worker.runtime.worker_id
    claim = worker._claim

    def claim_and_lose_the_lease(*arguments: Any) -> Claimed | None:
        found = claim(*arguments)
        worker.runtime.worker_id = uuid7()
        return found

    monkeypatch.setattr(handler, "claim_ticket", claim_and_lose_the_lease)
    before = time.monotonic()
    generate(JOB.hex)

    assert worker.asked == [(old, JOB)]
    assert worker.ran == [(claimed, old, 1)]
    assert worker.runtime.num_attempts == 0
    assert before <= worker.runtime.last_ticket_at <= time.monotonic()


@pytest.mark.parametrize("answer", [None, OperationalError()])
def test_a_ticket_that_gets_no_job_runs_none(worker: _Worker, answer: Exception | None) -> None:
    worker.answers = [answer]

    generate(JOB.hex)

    assert len(worker.asked) == 1
    assert worker.ran == []
    assert worker.runtime.num_attempts == 0


def test_a_worker_that_stops_claims_nothing(worker: _Worker) -> None:
    worker.runtime.draining.set()

    generate(JOB.hex)

    assert worker.asked == []
    assert not _look(worker)._look()
    assert (worker.asked, worker.runtime.num_attempts) == ([], 0)


def test_an_attempt_that_fails_is_over(worker: _Worker) -> None:
    worker.answers = [_broken()]

    with pytest.raises(ZeroDivisionError):
        generate(JOB.hex)

    assert worker.runtime.num_attempts == 0


def _broken() -> Claimed:
    stream = new_stream()
    object.__setattr__(stream.claimed, "model", "broken")
    return stream.claimed


def test_a_look_runs_what_it_finds_beside_itself(worker: _Worker) -> None:
    worker.answers, worker_id = [claimed := _claimed()], worker.runtime.worker_id
    worker.may_end.clear()

    assert _look(worker)._look()
    wait_until(lambda: worker.ran)
    [thread] = [each for each in threading.enumerate() if claimed.job_id.hex in each.name]
    runs = worker.runtime.num_attempts
    worker.may_end.set()
    thread.join(timeout=10)

    assert worker.asked == [(worker_id, "demo")]
    assert worker.ran == [(claimed, worker_id, 1)]
    assert thread.daemon  # no job keeps a process that has drained
    assert (runs, worker.runtime.num_attempts) == (1, 0)


@pytest.mark.parametrize("answer", [None, OperationalError(), ZeroDivisionError()])
def test_a_look_that_finds_nothing_leaves_nothing_behind(
    worker: _Worker, answer: Exception | None
) -> None:
    worker.answers = [answer]

    if answer is None:
        assert not _look(worker)._look()
    else:
        with pytest.raises(type(answer)):
            _look(worker)._look()

    assert (worker.ran, worker.runtime.num_attempts) == ([], 0)


def test_looks_go_on_whatever_one_of_them_met(worker: _Worker) -> None:
    worker.answers = [OperationalError(), ZeroDivisionError(), None, claimed := _claimed()]
    look = _look(worker)

    with capture_logs():  # tracebacks take long to print
        look.start()
        wait_until(lambda: worker.ran)
        look.stop()

    assert [job for job, _, _ in worker.ran] == [claimed]
    assert not look._thread.is_alive()


def test_one_look_after_the_other_fills_all_slots(worker: _Worker) -> None:
    jobs = [_claimed() for _ in range(3)]
    worker.answers = [*jobs]
    worker.may_end.clear()
    look = IdleLook(worker.runtime, interval_s=0.2)

    look.start()
    wait_until(lambda: len(worker.ran) == 2)
    took = [len(worker.asked), worker.runtime.num_attempts]
    look.stop()
    worker.may_end.set()
    wait_until(lambda: not worker.runtime.num_attempts)

    assert took == [2, 2]


def test_a_look_that_was_told_to_stop_is_waited_for(
    worker: _Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it still claims is part of the drain."""
    is_claiming, may_go_on = threading.Event(), threading.Event()

    def slow(*_: Any) -> None:
        is_claiming.set()
        may_go_on.wait(10)

    monkeypatch.setattr(handler, "claim_any", slow)
    look = _look(worker)
    look.start()
    assert is_claiming.wait(10)
    stopping = threading.Thread(target=look.stop)
    stopping.start()
    wait_until(look._stop.is_set)
    is_stopping = stopping.is_alive()
    may_go_on.set()
    stopping.join(timeout=10)

    assert is_stopping
    assert not look._thread.is_alive()


def test_the_task_of_a_ticket_is_celerys() -> None:
    assert app.tasks["inference.generate"].name == generate.name
    assert bootstrap.LifeCycle in app.steps["worker"]
    # Others' may be weak references, which have no module.
    heard_by = [getattr(receiver, "__module__", None) for _, receiver in worker_init.receivers]
    assert bootstrap.__name__ in heard_by
