"""How late a server answers `/livez`, whatever else the machine does. For how long its event loop
was held says `watched_api.py`. No pytest in here: benchmarks use it.
"""

from __future__ import annotations

import http.client
import threading
import time
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

PROBE_EVERY_S = 0.005


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
