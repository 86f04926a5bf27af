"""Which engine keeps its lease."""

from __future__ import annotations

import pytest

from workers.inference.engine.protocol import Phase, Progress
from workers.inference.liveness import Liveness


def serving(counter: int, *, is_idle: bool = False, patience_s: float = 0.0) -> Progress:
    return Progress(counter, Phase.SERVING, is_idle, patience_s)


def test_one_that_moves_lives() -> None:
    liveness = Liveness()

    assert all(liveness.is_alive(serving(counter), counter * 10.0) for counter in range(5))


def test_one_that_stands_still_does_not() -> None:
    liveness = Liveness()
    liveness.is_alive(serving(3), 0.0)

    assert not liveness.is_alive(serving(3), 1.0)
    assert liveness.is_alive(serving(4), 2.0)


def test_a_step_may_take_as_long_as_it_says() -> None:
    liveness = Liveness()
    liveness.is_alive(serving(3, patience_s=12.0), 0.0)

    assert liveness.is_alive(serving(3, patience_s=12.0), 11.0)
    assert not liveness.is_alive(serving(3, patience_s=12.0), 12.0)


def test_the_first_step_after_idleness_has_all_its_time() -> None:
    liveness = Liveness()
    for now in range(100):
        assert liveness.is_alive(serving(3, is_idle=True), float(now))

    assert liveness.is_alive(serving(3, patience_s=5.0), 100.0)
    assert not liveness.is_alive(serving(3, patience_s=5.0), 104.0)


@pytest.mark.parametrize(("phase", "limit_s"), [(Phase.LOADING, 600.0), (Phase.COMPILING, 180.0)])
def test_a_declared_phase_may_stand_still_for_its_limit(phase: Phase, limit_s: float) -> None:
    liveness = Liveness()
    liveness.is_alive(Progress(1, phase, False), 0.0)
    liveness.is_alive(Progress(2, phase, False), 50.0)

    assert liveness.is_alive(Progress(2, phase, False), 50.0 + limit_s - 1)
    assert not liveness.is_alive(Progress(2, phase, False), 50.0 + limit_s)


def test_a_stopped_engine_is_dead() -> None:
    liveness = Liveness()
    liveness.is_alive(Progress(3, Phase.STOPPED, False, 9.0), 0.0)

    assert not liveness.is_alive(Progress(3, Phase.STOPPED, False, 9.0), 10.0)
