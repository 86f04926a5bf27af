"""Watches the Redis that holds the hints, from a thread of its own: a Redis that is away, or hangs,
must not hold up a loop that needs Postgres only.
"""

from __future__ import annotations

import secrets
import threading
import time

import redis
import structlog

from tasks.keys import HINT_EPOCH
from tasks.vital import vital
from workers.maintenance import metrics

INTERVAL_S = 1.0
TIMEOUT_S = 1.0

# Hints sent this long before an outage was noticed may be lost too.
MARGIN_S = 2 * (INTERVAL_S + TIMEOUT_S)

log = structlog.get_logger(__name__)


class RedisWatch(threading.Thread):
    """Finds out which hints are lost; the re-hinter asks `lost_hints` and answers `forgotten`."""

    def __init__(self, url: str) -> None:
        super().__init__(name="redis-watch", daemon=True)
        self._redis = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, decode_responses=True
        )
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._epoch: str | None = None
        self._up_at = time.monotonic()  # when Redis last answered
        self._is_down = False
        self._is_empty = False  # Redis answered, without an epoch
        self._lost_within_s: float | None = None

    def run(self) -> None:
        """Look once a second."""
        with vital(self.name):
            while not self._stopped.wait(INTERVAL_S):
                try:
                    self.look()
                except Exception:  # the thread's boundary: the next look may be better
                    log.exception("hint_redis_not_understood")

    def stop(self) -> None:
        """End after the look at hand."""
        self._stopped.set()

    def look(self) -> None:
        """One look. Never raises for a Redis that is away."""
        try:
            epoch = self._redis.get(HINT_EPOCH)
        except redis.RedisError as error:
            metrics.REDIS_UP.set(0)
            if not self._is_down:
                log.warning("hint_redis_down", error=type(error).__name__)
            self._is_down = True
            return
        metrics.REDIS_UP.set(1)
        with self._lock:
            self._note(epoch if isinstance(epoch, str) else None)

    def lost_hints(self) -> float | None:
        """The hints of how many seconds are lost (infinity: all); None if none are."""
        with self._lock:
            return self._lost_within_s

    def forgotten(self) -> None:
        """Postgres knows: the jobs of the lost hints are due again. Only now Redis counts as whole,
        so that a crash in between loses nothing.
        """
        with self._lock:
            self._lost_within_s = None
            is_empty, self._is_empty = self._is_empty, False
        if is_empty:
            self._begin_epoch()

    def _note(self, epoch: str | None) -> None:
        outage_s = time.monotonic() - self._up_at
        if epoch is None or (self._epoch is not None and epoch != self._epoch):
            log.warning("hint_redis_is_empty")
            self._lost_within_s = float("inf")
            self._is_empty = epoch is None
        elif self._is_down:
            within_s = max(outage_s + MARGIN_S, self._lost_within_s or 0.0)
            self._lost_within_s = within_s
        self._epoch = epoch
        self._is_down = False
        self._up_at = time.monotonic()

    def _begin_epoch(self) -> None:
        try:
            self._redis.set(HINT_EPOCH, secrets.token_hex(8), nx=True)
            epoch = self._redis.get(HINT_EPOCH)
        except redis.RedisError:
            return  # the next look finds it missing again
        self._epoch = epoch if isinstance(epoch, str) else None
