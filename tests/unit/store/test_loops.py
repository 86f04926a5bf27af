"""When a loop over Postgres does its next step, whatever the last one did."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from psycopg import OperationalError
from structlog.testing import capture_logs

from store import loops
from store.loops import (
    FIRST_BACKOFF_S,
    MAX_BACKOFF_S,
    MAX_PAUSE_S,
    PAUSE_PER_STEP_TIME,
    PostgresLoop,
)


class _Pauses:
    """In place of an event: says how long it was waited for, and ends the loop after so many."""

    def __init__(self, num: int = 1) -> None:
        self.pauses: list[float] = []
        self._num = num

    def is_set(self) -> bool:
        return len(self.pauses) >= self._num

    def wait(self, timeout: float) -> None:
        self.pauses.append(timeout)

    def set(self) -> None:
        """Nobody waits."""

    def clear(self) -> None:
        """It is never set."""


class _Clock:
    def __init__(self, *moments: float) -> None:
        self._moments = list(moments)

    def monotonic(self) -> float:
        return self._moments.pop(0)


class _Steps:
    """A step that has these answers."""

    def __init__(self, *answers: bool | Exception) -> None:
        self.left = list(answers)

    def __call__(self, _connection: Any) -> bool:
        answer = self.left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def connected(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What connections were made. And no loop waits less than the whole of a pause."""
    made: list[dict[str, Any]] = []

    @contextmanager
    def connect(url: str, **named: Any) -> Iterator[None]:
        made.append({"url": url, **named})
        yield

    monkeypatch.setattr(loops, "connect", connect)
    monkeypatch.setattr(random, "uniform", lambda _least, most: most)
    return made


def _loop(
    step: Any, *, num_pauses: int = 1, interval_s: float = 7
) -> tuple[PostgresLoop, list[float]]:
    """It ends after so many pauses, whichever they are."""
    loop, pauses = (
        PostgresLoop("test", "postgresql://here", step, interval_s=interval_s),
        _Pauses(num_pauses),
    )
    loop._wake = loop._stopped = pauses  # type: ignore[assignment]
    return loop, pauses.pauses


def test_a_loop_is_a_thread_that_holds_up_no_end_of_its_process() -> None:
    loop = PostgresLoop("reaper", "postgresql://here", _Steps(), interval_s=7)

    assert (loop.name, loop.daemon, loop.num_failures) == ("reaper", True, 0)


@pytest.mark.parametrize(
    ("took_s", "interval_s", "pause_s"),
    [
        (0.1, 7, 7),
        (3.5, 7, 7),
        (0.4, 1, 1),
        (1.25, 1, 1.25 * PAUSE_PER_STEP_TIME),
        (1.5, 1, MAX_PAUSE_S),
        (5.0, 1, MAX_PAUSE_S),
        (5.0, 7, 7),
    ],
)
def test_a_step_is_rested_after_for_the_interval_or_for_twice_its_time_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch,
    connected: list[dict[str, Any]],
    took_s: float,
    interval_s: float,
    pause_s: float,
) -> None:
    monkeypatch.setattr(loops, "time", _Clock(100.0, 100.0 + took_s))
    loop, pauses = _loop(_Steps(False), interval_s=interval_s)

    loop.run()

    assert pauses == [pause_s]
    named = {"application_name": "millrace-test", "plans_once": True}
    assert connected == [{"url": "postgresql://here", **named}]


def test_a_step_that_leaves_more_to_do_is_not_rested_after() -> None:
    steps = _Steps(True, True, False)
    loop, pauses = _loop(steps)

    loop.run()

    assert (steps.left, pauses) == ([], [7])


def test_failures_in_a_row_are_waited_after_ever_longer_and_a_step_ends_the_row(
    connected: list[dict[str, Any]],
) -> None:
    errors = [ValueError("x"), *[OperationalError("away")] * 12]
    loop, pauses = _loop(_Steps(*errors, False, ValueError("x")), num_pauses=15)

    with capture_logs() as logs:
        loop.run()

    limits = [0.2, 0.4, 0.8, 1.6, 3.2, *[MAX_BACKOFF_S] * 8]
    assert pauses == [*limits, 7, FIRST_BACKOFF_S]
    assert len(connected) == 14  # a new one after each failure
    names = ["loop_step_failed", *["loop_lost_postgres"] * 12, "loop_step_failed"]
    assert [line["event"] for line in logs] == names
    assert (logs[1]["loop"], logs[1]["error"]) == ("test", "away")


def test_failures_are_counted_up_to_ten() -> None:
    loop, _ = _loop(_Steps(*[OperationalError("away")] * 12), num_pauses=12)

    with capture_logs():
        loop.run()

    assert loop.num_failures == 10


def test_a_loop_that_was_not_begun_may_be_stopped() -> None:
    loop = PostgresLoop("test", "postgresql://here", _Steps(), interval_s=7)

    loop.stop()
    loop.run()

    assert not loop.is_alive()


def test_a_loop_that_is_stopped_ends_after_its_step_and_is_waited_for() -> None:
    stepped, may_end = threading.Event(), threading.Event()

    def step(_connection: Any) -> bool:
        stepped.set()
        return not may_end.wait(10)

    loop = PostgresLoop("test", "postgresql://here", step, interval_s=3_600)
    loop.start()
    assert stepped.wait(10)
    loop.stop(timeout_s=0)
    assert loop.is_alive()
    may_end.set()
    loop.stop(timeout_s=10)

    assert not loop.is_alive()


def test_a_wake_during_a_step_is_not_slept_over() -> None:
    stepped: list[int] = []
    done = threading.Event()

    def step(_connection: Any) -> bool:
        stepped.append(1)
        if len(stepped) == 1:
            loop.wake()
        else:
            done.set()
        return False

    loop = PostgresLoop("test", "postgresql://here", step, interval_s=3_600)
    loop.start()

    assert done.wait(10)
    loop.stop(timeout_s=10)
    assert len(stepped) == 2  # and it is heard once
