"""Celery's consumer, whose patience with a Redis that answers has an end.

A Redis that is away, or takes no writes for now, is waited for. What no outage explains, such as a
right that is missing or a key of another type, would be waited for for ever, by a worker that takes
no jobs and looks alive: after some minutes it says why and ends, to be started anew.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable
from typing import Any

from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer import Consumer as CeleryConsumer
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from tasks.vital import end_worker

PATIENCE_S = 300.0
FORGET_S = 60.0  # without such an error: it worked meanwhile

_PASSING = (
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)
# Of these redis-py makes no classes: its disk is full, replicas are missing, a script runs.
_PASSING_CODES = re.compile(r"\b(MISCONF|NOREPLICAS|BUSY)\b")


class Patience:
    """For how long nothing but errors has come that no outage explains."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._last = 0.0

    def is_over(self, error: BaseException) -> bool:
        """Whether this error is one too many."""
        if not _is_permanent(error):
            self._since = None
            return False
        now = self._clock()
        if self._since is None or now - self._last > FORGET_S:
            self._since = now
        self._last = now
        return now - self._since >= PATIENCE_S


def _is_permanent(error: BaseException) -> bool:
    if not isinstance(error, ResponseError) or isinstance(error, _PASSING):
        return False
    return _PASSING_CODES.search(str(error)) is None


class Consumer(CeleryConsumer):
    """What `worker_consumer` names."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # Else ten lines follow each loss of the connection, about a default that is decided here.
        warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
        self._patience = Patience()

    def on_connection_error_before_connected(self, exc: BaseException) -> None:
        """Before each new try."""
        self._judge(exc)
        super().on_connection_error_before_connected(exc)

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Before each new try."""
        self._judge(exc)
        super().on_connection_error_after_connected(exc)

    def _judge(self, error: BaseException) -> None:
        if self._patience.is_over(error):
            end_worker("redis", f"{type(error).__name__}: {error}")
