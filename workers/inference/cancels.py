"""The fast way a cancellation reaches a worker: pub/sub. The heartbeat reads the sure one.

The message only makes the worker look: whether a job is really to be cancelled stands in Postgres.
"""

from __future__ import annotations

import threading
from uuid import UUID

import redis
import structlog

from tasks.keys import cancel_channel
from tasks.vital import vital
from workers.inference.runtime import Runtime

log = structlog.get_logger(__name__)

POLL_S = 1.0


class CancelListener:
    """One thread, one pub/sub connection."""

    def __init__(self, runtime: Runtime, *, poll_s: float = POLL_S) -> None:
        self._runtime = runtime
        self._poll_s = poll_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cancels", daemon=True)

    def start(self) -> None:
        """Start listening."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening."""
        self._stop.set()
        self._thread.join(timeout=2 * self._poll_s)

    def _run(self) -> None:
        with vital("cancels"):
            while not self._stop.is_set():
                self._try_to_listen()

    def _try_to_listen(self) -> None:
        try:
            self._listen(self._runtime.worker_id)
        except redis.RedisError:
            self._stop.wait(self._poll_s)
        except Exception:  # the thread's boundary: the next cancellation is heard all the same
            log.exception("cancels_failed")
            self._stop.wait(self._poll_s)

    def _listen(self, worker_id: UUID) -> None:
        """Until the worker gets a new id."""
        with self._runtime.streams.pubsub(  # type: ignore[no-untyped-call]  # redis-py's gap
            ignore_subscribe_messages=True
        ) as subscription:
            subscription.subscribe(cancel_channel(worker_id))
            while not self._stop.is_set() and self._runtime.worker_id == worker_id:
                message = subscription.get_message(timeout=self._poll_s)
                if message is not None:
                    self._cancel(message["data"])

    def _cancel(self, data: bytes) -> None:
        try:
            job = self._runtime.find(UUID(hex=data.decode()))
        except ValueError:
            log.warning("cancel_not_understood")
            return
        if job is not None:
            self._runtime.abort(job)
