"""Tasks of the billing service. A message is a hint: the outcome in Postgres is the truth, and
billing polls for what a lost hint left behind.
"""

from __future__ import annotations

import threading
import time
from dataclasses import astuple, dataclass
from uuid import UUID

import structlog
from prometheus_client import Counter

from tasks.app import app
from tasks.queues import BILLING, named_queue

SETTLE = "billing.settle"
EXPIRE_RESERVATIONS = "billing.expire_reservations"

# A hint that comes after a pause goes out at once. Those behind it wait so long and go as one:
# billing settles whatever waits, and many jobs in one transaction cost little more than one.
INTERVAL_S = 0.25

SENT = Counter("millrace_settle_hints_sent", "Settle hints handed to Redis")
LOST = Counter("millrace_settle_hints_lost", "Settle hints given up; the poll covers them", ["why"])

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SettleArgs:
    """The arguments of `billing.settle`."""

    job_id: str  # 32 hex digits


class _Sender:
    """One thread that sends hints, so that no caller ever waits for Redis."""

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._latest: SettleArgs | None = None
        self._is_due = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, args: SettleArgs) -> None:
        self._latest = args
        self._is_due.set()
        self._ensure_thread()

    def _ensure_thread(self) -> None:
        """The thread starts with the first hint, not at import; a forked child starts its own."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="settle-hints", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            self._is_due.wait()
            self._is_due.clear()
            assert self._latest is not None
            _send(self._latest)
            time.sleep(self._interval_s)


def _send(args: SettleArgs) -> None:
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
