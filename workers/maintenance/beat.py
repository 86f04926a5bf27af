"""Beat is a process of its own beside the worker that it belongs to. Each ends with the other.

Celery ends beat in every stop. But of a worker that is killed it would stay behind, and send its
tasks beside the beat of the next worker; each crash would leave one more. And of a beat that is
killed, or can't write down when it sent what, nobody would hear: what is periodic, such as
retention, would never run again.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Protocol

import structlog
from celery.signals import beat_embedded_init

from tasks.vital import vital

LOOK_S = 1.0
PATIENCE_S = 300.0  # the loops go on meanwhile: a disk that is full for beat isn't for Postgres

log = structlog.get_logger(__name__)

_loaded_by = os.getpid()  # the worker, of which beat is a fork


@beat_embedded_init.connect(weak=False)
def end_with_worker(**_: Any) -> None:
    """In beat's process, before its first task. The worker may be gone already."""
    worker = _loaded_by if _loaded_by != os.getpid() else os.getppid()
    threading.Thread(target=_watch, args=(worker,), name="worker-watch", daemon=True).start()


def _watch(worker: int) -> None:
    """Whoever has no parent any more is given another one. Exits without any cleaning up: a lock
    may be held by a thread that the worker had when it was copied.
    """
    while os.getppid() == worker:
        time.sleep(LOOK_S)
    os._exit(0)


class BeatProcess(Protocol):
    """What Celery starts beside a worker."""

    exitcode: int | None

    def is_alive(self) -> bool: ...


class BeatWatch(threading.Thread):
    """Ends the worker, to be started anew, once its beat has been gone for some minutes."""

    def __init__(self, beat: BeatProcess, *, patience_s: float = PATIENCE_S) -> None:
        super().__init__(name="beat", daemon=True)
        self._beat = beat
        self._patience_s = patience_s
        self._stopped = threading.Event()

    def run(self) -> None:
        """Look once a second. Of a worker that stops, beat may end."""
        with vital(self.name):
            while self._beat.is_alive():
                if self._stopped.wait(LOOK_S):
                    return
            log.error(
                "beat_ended", exit_code=self._beat.exitcode, worker_ends_in_s=self._patience_s
            )
            if not self._stopped.wait(self._patience_s):
                raise RuntimeError(f"its process has ended by {self._beat.exitcode}")

    def stop(self) -> None:
        """End, before beat does."""
        self._stopped.set()
