"""Beat is a process of its own beside the worker that it belongs to, and ends with it.

Celery ends it in every stop. But of a worker that is killed it would stay behind, and send its
tasks beside the beat of the next worker; each crash would leave one more.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from celery.signals import beat_embedded_init

LOOK_S = 1.0

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
