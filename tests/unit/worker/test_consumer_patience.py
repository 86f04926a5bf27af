"""A worker waits for Redis in any outage, and not for ever for what no outage explains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from celery.utils.imports import symbol_by_name
from celery.worker import state as celery_state
from celery.worker.consumer import Consumer as CeleryConsumer
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
)

from tasks.app import app
from tasks.consumer import FORGET_S, PATIENCE_S, Consumer, Patience
from tasks.vital import EXIT_CODE

PERMANENT = [
    NoPermissionError("this user has no permissions to run the 'brpop' command"),
    ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
    ResponseError("unknown command 'BRPOP'"),
]
PASSING = [
    ConnectionError("refused"),
    TimeoutError("timed out"),
    AuthenticationError("a password that is being changed"),
    BusyLoadingError("Redis is loading the dataset in memory"),
    OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
    ReadOnlyError("You can't write against a read only replica."),
    ResponseError("MISCONF Redis is configured to save RDB snapshots"),
    ResponseError("NOREPLICAS Not enough good replicas to write."),
    ResponseError("Command # 2 (SADD x y) of pipeline caused error: MISCONF Redis is configured"),
    OSError("no route"),
]
STEP_S = FORGET_S / 2


def _name(error: Exception) -> str:
    return f"{type(error).__name__}-{str(error).split()[0]}"


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("error", PERMANENT, ids=_name)
def test_what_stays_wrong_for_minutes_ends_the_patience(error: Exception) -> None:
    clock = _Clock()
    patience = Patience(clock)

    while clock.now < PATIENCE_S:
        assert not patience.is_over(error)
        clock.now += STEP_S

    assert patience.is_over(error)


@pytest.mark.parametrize("error", PASSING, ids=_name)
def test_an_outage_is_waited_for_for_ever(error: Exception) -> None:
    clock = _Clock()
    patience = Patience(clock)

    for number in range(1_000):
        clock.now = number * STEP_S
        assert not patience.is_over(error)


@pytest.mark.parametrize("between", ["an outage", "work"])
def test_patience_begins_anew_after_what_explains_it(between: str) -> None:
    clock = _Clock()
    patience = Patience(clock)
    while clock.now < PATIENCE_S:
        assert not patience.is_over(PERMANENT[0])
        clock.now += STEP_S

    if between == "an outage":
        assert not patience.is_over(PASSING[0])
    else:
        clock.now += 2 * FORGET_S

    assert not patience.is_over(PERMANENT[0])


@pytest.mark.parametrize("is_connected", [True, False])
def test_the_worker_ends_with_an_error(monkeypatch: pytest.MonkeyPatch, is_connected: bool) -> None:
    name = f"on_connection_error_{'after' if is_connected else 'before'}_connected"
    went_on: list[Exception] = []
    monkeypatch.setattr(CeleryConsumer, name, lambda _self, error: went_on.append(error))
    monkeypatch.setattr(celery_state, "should_stop", None)
    consumer = cast(Any, object.__new__(Consumer))
    consumer._patience = SimpleNamespace(is_over=lambda error: error is PERMANENT[0])

    getattr(consumer, name)(PASSING[0])
    assert celery_state.should_stop is None
    getattr(consumer, name)(PERMANENT[0])

    assert celery_state.should_stop == EXIT_CODE
    assert went_on == [PASSING[0], PERMANENT[0]]


def test_every_worker_has_it() -> None:
    assert symbol_by_name(app.conf.worker_consumer) is Consumer
