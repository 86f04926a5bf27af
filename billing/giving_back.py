"""Gives back to rate limits what jobs reserved and didn't use, as soon as they are settled.

Best effort, and never twice: each job is settled once, and what is lost on the way, with a Redis
that is away or a process that dies, comes back by itself within a minute.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import redis
import structlog
from psycopg import Error as DatabaseError

from billing import metrics
from store.pools import DictConnection
from store.rate_limits import UnusedTokens, unused_tokens
from tasks.keys import rate_limits
from tasks.limits import PERIOD_S, TAKE_SCRIPT, Amounts, take_arguments
from tasks.settings import RedisSettings
from tasks.vital import vital

log = structlog.get_logger(__name__)

MAX_WAITING = 1_000
REDIS_TIMEOUT_S = 1.0
THREAD = "token-returns"


class TokenReturns:
    """One thread that tells Redis, so that settling never waits for it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: queue.Queue[tuple[float, UnusedTokens]] = queue.Queue(MAX_WAITING)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, unused: UnusedTokens) -> None:
        """Returns at once and never raises."""
        try:
            self._waiting.put_nowait((self._clock(), unused))
        except queue.Full:
            metrics.TOKENS_NOT_GIVEN_BACK.inc(unused.num_tokens)
        else:
            self._start_once()

    def _start_once(self) -> None:
        """The first one starts the thread: most installations need none."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        with vital(THREAD):
            client = redis.Redis.from_url(
                RedisSettings().limits,
                socket_timeout=REDIS_TIMEOUT_S,
                socket_connect_timeout=REDIS_TIMEOUT_S,
            )
            script = client.register_script(TAKE_SCRIPT)
            while True:
                queued_at, unused = self._waiting.get()
                _tell(script, self._clock() - queued_at, unused)


def _tell(script: Callable[..., Any], age_s: float, unused: UnusedTokens) -> None:
    if age_s > PERIOD_S:  # it has come back by itself
        metrics.TOKENS_NOT_GIVEN_BACK.inc(unused.num_tokens)
        return
    try:
        script(
            keys=[rate_limits(unused.tenant_id)],
            args=take_arguments(unused.limits, Amounts(0, -unused.num_tokens)),
        )
    except Exception as error:  # one tenant's boundary: others wait behind it
        metrics.TOKENS_NOT_GIVEN_BACK.inc(unused.num_tokens)
        log.warning("tokens_not_given_back", error=type(error).__name__)
    else:
        metrics.TOKENS_GIVEN_BACK.inc(unused.num_tokens)


_returns = TokenReturns()


def give_back(connection: DictConnection, job_ids: Sequence[UUID]) -> None:
    """Give back what these jobs left over. They were settled just now, and committed: whatever
    goes wrong here, they stay so.
    """
    try:
        unused = unused_tokens(connection, job_ids) if job_ids else []
    except DatabaseError as error:
        log.warning("tokens_not_given_back", error=type(error).__name__)
    else:
        for tokens in unused:
            _returns.put(tokens)
