"""How long an event loop was held. No pytest in here: benchmarks use it too.

`watch_callbacks` looks inside, at a loop of this process: the CPU time of each callback, which a
busy machine doesn't change. `Lag` looks from outside, at a server: how late it answers `/livez`.
"""

from __future__ import annotations

import asyncio
import gc
import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from unittest import mock
from urllib.parse import urlsplit

PROBE_EVERY_S = 0.005


@dataclass
class Worst:
    """The longest callback so far."""

    cpu_s: float = 0.0
    callback: str = ""

    def take(self, cpu_s: float, handle: Any) -> None:
        if cpu_s > self.cpu_s:
            self.cpu_s, self.callback = cpu_s, repr(handle)

    def reset(self) -> None:
        self.cpu_s, self.callback = 0.0, ""


@contextmanager
def watch_callbacks(loop: asyncio.AbstractEventLoop) -> Iterator[Worst]:
    """Measures the callbacks of one of asyncio's own loops, in whatever thread it runs. The garbage
    of the whole process is not collected meanwhile, as it isn't a callback's own.
    """
    worst = Worst()
    run = asyncio.Handle._run

    def timed(handle: Any) -> None:
        if handle._loop is not loop:
            run(handle)
            return
        began = time.thread_time()
        run(handle)
        worst.take(time.thread_time() - began, handle)

    gc.disable()
    try:
        with mock.patch.object(asyncio.Handle, "_run", timed):
            yield worst
    finally:
        gc.enable()


class Lag:
    """Asks a server every few ms whether it lives, from a thread, while the block runs."""

    def __init__(self, url: str) -> None:
        self.worst_ms = 0.0
        self._address = urlsplit(url)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._probe, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _probe(self) -> None:
        assert self._address.hostname is not None
        connection = http.client.HTTPConnection(self._address.hostname, self._address.port)
        while not self._stop.wait(PROBE_EVERY_S):
            began = time.monotonic()
            connection.request("GET", "/livez")
            connection.getresponse().read()
            self.worst_ms = max(self.worst_ms, (time.monotonic() - began) * 1000)
        connection.close()
