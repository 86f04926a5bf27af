"""Threads that a worker is nothing without: if one ends by an error, so does its process.

A worker whose work has ended would look healthy to whoever supervises it. So it stops, in the way
of every stop, with exit code 1, and is started anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from celery.worker import state as celery_state

EXIT_CODE = 1

log = structlog.get_logger(__name__)


@contextmanager
def vital(name: str) -> Iterator[None]:
    """Around the whole body of such a thread. Never raises."""
    try:
        yield
    except BaseException as error:  # whatever it was: nobody else would hear of it
        end_worker(name, f"{type(error).__name__}: {error}")


def end_worker(name: str, why: str) -> None:
    """Say why in one line, and have Celery stop the worker. From any thread; returns at once. A
    worker that stops already goes on with that.
    """
    if celery_state.should_stop is not None and celery_state.should_stop is not False:
        return
    log.error("worker_ends", without=name, error=" ".join(why.split()))
    celery_state.should_stop = EXIT_CODE
