"""Celery's pool for the inference worker: threads whose task can be aborted.

Celery's own threads pool can't end a task: a revoke raises NotImplementedError and a shutdown
waits for ever. Here `terminate_job` asks the engine to end the request; the thread then returns.
Used by `CELERY_CUSTOM_WORKER_POOL=workers.inference.pool:TaskPool celery worker -P custom`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from celery.concurrency.base import apply_target
from celery.concurrency.thread import ApplyResult as ThreadResult
from celery.concurrency.thread import TaskPool as ThreadPool

# Given by bootstrap.py: ends what the thread with this ident is running.
_terminate: Callable[[int], None] | None = None


def set_terminator(terminate: Callable[[int], None]) -> None:
    """Say how a thread's task is ended."""
    global _terminate  # noqa: PLW0603
    _terminate = terminate


class ApplyResult(ThreadResult):
    """The result handle Celery keeps of a running task."""

    def terminate(self, signal: Any = None) -> None:
        """Celery calls this beside terminate_job, which does the work."""


class TaskPool(ThreadPool):
    """A thread pool in which the `pid` of a task is the ident of its thread."""

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        **_: Any,
    ) -> ApplyResult:
        """Run a task on a thread. Celery's time limits don't apply: the engine has deadlines."""
        future = self.executor.submit(_run, target, args, kwargs, callback, accept_callback)
        return ApplyResult(future)

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """End the task on thread `pid`, cooperatively."""
        if _terminate is not None:
            _terminate(pid)


def _run(
    target: Callable[..., Any],
    args: tuple[Any, ...] | None,
    kwargs: dict[str, Any] | None,
    callback: Callable[..., Any] | None,
    accept_callback: Callable[..., Any] | None,
) -> None:
    apply_target(target, args or (), kwargs, callback, accept_callback, None, threading.get_ident)
