"""Writes of a worker that loses its connection to Postgres: fenced, so they may be repeated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from workers.inference import run_job
from workers.inference.run_job import COMMIT_PATIENCE_S, COMMIT_RETRY_S


class _Clock:
    """Goes on by what is slept."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class _Postgres:
    """A pool whose writes fail so many times."""

    def __init__(self, num_losses: float) -> None:
        self.num_losses = num_losses
        self.num_tries = 0
        self.runtime: Any = SimpleNamespace(pool=self)

    @contextmanager
    def connection(self) -> Iterator[str]:
        yield "connection"

    def write(self, connection: Any) -> str:
        self.num_tries += 1
        if self.num_tries <= self.num_losses:
            raise psycopg.OperationalError("the connection is lost")
        return f"written by {connection}"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(run_job, "time", clock)
    return clock


def test_a_write_is_repeated_until_it_is_done(clock: _Clock) -> None:
    postgres = _Postgres(num_losses=3)

    written = run_job._commit(postgres.runtime, postgres.write)

    assert written == "written by connection"
    assert postgres.num_tries == 4
    assert clock.now == 1_000.0 + 3 * COMMIT_RETRY_S


def test_a_write_is_given_up_in_the_end(clock: _Clock) -> None:
    postgres = _Postgres(num_losses=float("inf"))

    written = run_job._commit(postgres.runtime, postgres.write)

    assert written is None
    assert COMMIT_PATIENCE_S < clock.now - 1_000.0 <= COMMIT_PATIENCE_S + COMMIT_RETRY_S


def test_a_write_that_is_wrong_is_not_repeated(clock: _Clock) -> None:
    postgres = _Postgres(num_losses=0)

    def write(_connection: Any) -> str:
        postgres.num_tries += 1
        raise psycopg.errors.UndefinedTable

    with pytest.raises(psycopg.errors.UndefinedTable):
        run_job._commit(postgres.runtime, write)

    assert postgres.num_tries == 1
    assert clock.now == 1_000.0
