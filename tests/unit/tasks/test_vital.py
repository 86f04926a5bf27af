"""A worker ends with the threads that it is nothing without."""

from __future__ import annotations

import asyncio

import pytest
from celery.worker import state as celery_state
from structlog.testing import capture_logs

from tasks.vital import EXIT_CODE, end_worker, vital


@pytest.fixture(autouse=True)
def worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that runs."""
    monkeypatch.setattr(celery_state, "should_stop", None)


@pytest.mark.parametrize(
    "error", [ValueError("no\nway"), SystemExit("no way"), asyncio.CancelledError("no way")]
)
def test_a_vital_thread_that_ends_by_any_error_ends_its_worker(error: BaseException) -> None:
    with capture_logs() as logs, vital("reaper"):
        raise error

    assert celery_state.should_stop == EXIT_CODE == 1
    assert [(entry["event"], entry["without"], entry["error"]) for entry in logs] == [
        ("worker_ends", "reaper", f"{type(error).__name__}: no way")
    ]


def test_a_vital_thread_that_was_told_to_end_ends_alone() -> None:
    with vital("reaper"):
        pass

    assert celery_state.should_stop is None


@pytest.mark.parametrize("exit_code", [0, 1])
def test_a_worker_that_stops_already_goes_on_with_that(
    monkeypatch: pytest.MonkeyPatch, exit_code: int
) -> None:
    monkeypatch.setattr(celery_state, "should_stop", exit_code)

    with capture_logs() as logs:
        end_worker("engine", "It has stopped.")

    assert celery_state.should_stop == exit_code
    assert logs == []
