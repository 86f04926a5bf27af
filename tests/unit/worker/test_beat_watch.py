"""A maintenance worker whose beat has ended is started anew, but not at once."""

from __future__ import annotations

import sys
from subprocess import PIPE, Popen

import pytest
from celery.worker import state as celery_state

from tasks.vital import EXIT_CODE
from tests.support.waiting import wait_until
from workers.maintenance.beat import BeatWatch


class _Beat:
    """A process of its own."""

    def __init__(self) -> None:
        self.process = Popen([sys.executable, "-c", "input()"], stdin=PIPE)
        self.exitcode: int | None = None

    def is_alive(self) -> bool:
        self.exitcode = self.process.poll()
        return self.exitcode is None

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(autouse=True)
def _nobody_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celery_state, "should_stop", None)


def test_the_worker_ends_with_an_error_once_beat_is_gone_for_long() -> None:
    beat = _Beat()
    watch = BeatWatch(beat, patience_s=0.05)
    watch.start()
    assert celery_state.should_stop is None

    beat.kill()

    wait_until(lambda: celery_state.should_stop == EXIT_CODE)
    watch.join(timeout=10)
    assert not watch.is_alive()


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_worker_that_stops_is_not_made_to_end(is_killed: bool) -> None:
    beat = _Beat()
    watch = BeatWatch(beat, patience_s=60)
    watch.start()
    if is_killed:
        beat.kill()

    watch.stop()
    watch.join(timeout=10)

    assert not watch.is_alive()
    assert celery_state.should_stop is None
    beat.kill()
