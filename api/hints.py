"""Sends hints for a whole API process from one thread, some at a time. May lose any of them: a job
is in Postgres before its hint is queued here, and the re-hinter sends what got lost.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

import structlog

from api import metrics
from tasks.inference import Hint, send_hints

log = structlog.get_logger(__name__)

MAX_BATCH = 256  # those that queue up while a batch is sent make the next one
MAX_QUEUED = 10_000
# Sends begin no closer than this, so that a burst shares pipelines: one costs as much as two hints.
# A hint that comes after a pause goes out at once.
MIN_INTERVAL_S = 0.01
MAX_AGE_S = 1.0  # while Redis is away hints are not hoarded: the re-hinter does it better

_Queued = tuple[float, Hint]


class HintSender:
    """One thread and a bounded queue. `send` never blocks and never raises."""

    def __init__(self, publish: Callable[[Sequence[Hint]], None] = send_hints) -> None:
        self._publish = publish
        self._queue: queue.Queue[_Queued | None] = queue.Queue(MAX_QUEUED)
        self._sent_at = 0.0
        self._thread = threading.Thread(target=self._run, name="hints", daemon=True)

    def start(self) -> None:
        """Start the thread. Call once."""
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Send what is queued and end the thread; blocks for at most `timeout_s`."""
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def send(self, hint: Hint) -> None:
        """Queue a hint of a job that is committed."""
        try:
            self._queue.put_nowait((time.monotonic(), hint))
        except queue.Full:
            metrics.hints_lost.labels("queue_full").inc()

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch, is_open = self._collect()
            if batch:
                self._send(batch)

    def _collect(self) -> tuple[list[_Queued], bool]:
        """Wait for a hint, take what queued up meanwhile. The flag says whether to go on."""
        entry = self._queue.get()
        if (pause_s := self._sent_at + MIN_INTERVAL_S - time.monotonic()) > 0:
            time.sleep(pause_s)
        batch: list[_Queued] = []
        while entry is not None:
            batch.append(entry)
            if len(batch) == MAX_BATCH:
                return batch, True
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    def _send(self, batch: list[_Queued]) -> None:
        now = self._sent_at = time.monotonic()
        fresh = [entry for entry in batch if now - entry[0] <= MAX_AGE_S]
        if stale := len(batch) - len(fresh):
            metrics.hints_lost.labels("too_old").inc(stale)
        if not fresh:
            return
        try:
            self._publish([hint for _, hint in fresh])
        except Exception as error:
            # kombu, redis and socket errors; whichever it is, the thread must live on.
            metrics.hints_lost.labels("publish_failed").inc(len(fresh))
            log.warning("hints_not_sent", num_hints=len(fresh), error=repr(error))
            return
        now = time.monotonic()
        for queued_at, _ in fresh:
            metrics.enqueue_seconds.observe(now - queued_at)
