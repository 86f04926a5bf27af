"""A loop that faults runs again, unless it faults too often."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from workers.inference.engine.supervisor import MAX_RESTARTS, WINDOW_S, supervise


class Loop:
    """Faults a number of times, then returns; what was called is in `calls`."""

    def __init__(self, num_faults: int, on_fault: Callable[[], None] = lambda: None) -> None:
        self.calls: list[str] = []
        self._num_faults = num_faults
        self._on_fault = on_fault

    def run(self) -> None:
        self.calls.append("run")
        if self.calls.count("run") <= self._num_faults:
            self._on_fault()
            raise RuntimeError("fault")

    def recover(self) -> None:
        self.calls.append("recover")


def test_loop_that_returns_is_not_run_again() -> None:
    loop = Loop(0)

    assert supervise(loop.run, loop.recover) is None
    assert loop.calls == ["run"]


def test_loop_recovers_and_goes_on_after_each_fault() -> None:
    loop = Loop(2)

    assert supervise(loop.run, loop.recover) is None
    assert loop.calls == ["run", "recover", "run", "recover", "run"]


def test_fault_after_too_many_restarts_is_given_back() -> None:
    loop = Loop(1000)

    fault = supervise(loop.run, loop.recover)

    assert isinstance(fault, RuntimeError)
    assert loop.calls.count("recover") == MAX_RESTARTS


def test_old_restarts_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def wait() -> None:
        now[0] += WINDOW_S / MAX_RESTARTS

    loop = Loop(10 * MAX_RESTARTS, on_fault=wait)

    assert supervise(loop.run, loop.recover) is None


def test_fault_while_recovering_counts_as_one_of_the_loop() -> None:
    loop = Loop(1)

    def fail() -> None:
        loop.calls.append("recover")
        raise RuntimeError("fault")

    assert supervise(loop.run, fail) is not None
    assert loop.calls == ["run"] + ["recover"] * MAX_RESTARTS
