"""Runs a loop again after a fault, unless it fails too often."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import structlog

MAX_RESTARTS = 3
WINDOW_S = 60.0  # in which there may be so many restarts

log = structlog.get_logger(__name__)


def supervise(loop: Callable[[], None], recover: Callable[[], None]) -> Exception | None:
    """Run `loop` until it returns; after a fault call `recover` and run it again.

    Returns None, or the fault after which it gave up. A fault of `recover` counts as the loop's.
    """
    restarts: deque[float] = deque(maxlen=MAX_RESTARTS)
    must_recover = False
    while True:
        try:
            if must_recover:
                recover()
            loop()
            return None
        except Exception as error:  # a bug of ours; the requests it concerns must not end with it
            log.exception("engine_loop_failed", num_recent_restarts=len(restarts))
            now = time.monotonic()
            if len(restarts) == MAX_RESTARTS and now - restarts[0] < WINDOW_S:
                return error
            restarts.append(now)
            must_recover = True
