"""Tasks of the billing service. A message is a hint: the outcome in Postgres is the truth, and
billing polls for what a lost hint left behind.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import astuple, dataclass
from uuid import UUID

import structlog
from prometheus_client import Counter

from tasks.app import app
from tasks.queues import BILLING, named_queue

SETTLE = "billing.settle"
EXPIRE_RESERVATIONS = "billing.expire_reservations"

# Hints that wait while Redis is slow. Beyond it they are dropped: billing polls every 2 s.
MAX_WAITING_HINTS = 1_000

SENT = Counter("millrace_settle_hints_sent", "Settle hints handed to Redis")
LOST = Counter("millrace_settle_hints_lost", "Settle hints given up; the poll covers them", ["why"])

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SettleArgs:
    """The arguments of `billing.settle`."""

    job_id: str  # 32 hex digits


class _Sender:
    """One thread that sends hints, so that no caller ever waits for Redis."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[SettleArgs] = queue.Queue(MAX_WAITING_HINTS)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, args: SettleArgs) -> None:
        try:
            self._waiting.put_nowait(args)
        except queue.Full:
            LOST.labels("full").inc()
        else:
            self._ensure_thread()

    def _ensure_thread(self) -> None:
        """The thread starts with the first hint, not at import; a forked child starts its own."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="settle-hints", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            args = self._waiting.get()
            try:
                app.send_task(SETTLE, args=astuple(args), queue=named_queue(BILLING))
            except Exception as error:  # a thread's boundary: the poll is the retry
                LOST.labels("failed").inc()
                log.warning("settle_hint_lost", job_id=args.job_id, error=type(error).__name__)
            else:
                SENT.inc()


_sender = _Sender()


def enqueue_settle(job_id: UUID) -> None:
    """Tell billing that a job has an outcome. Returns at once and never raises.

    Call it after the commit. May be called twice: settling is unique on the job.
    """
    _sender.put(SettleArgs(job_id.hex))
