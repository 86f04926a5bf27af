"""An HTTP server that takes webhooks and answers as a test tells it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Received:
    """One POST."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """`answers` are given in turn, then 200. A cleared `may_answer` holds every answer back."""

    url: str
    received: list[Received] = field(default_factory=list)
    answers: deque[tuple[int, dict[str, str]]] = field(default_factory=deque)
    may_answer: threading.Event = field(default_factory=threading.Event)

    def answer(self, status: int, **headers: str) -> None:
        """The next answer that is not spoken for yet."""
        self.answers.append((status, {n.replace("_", "-"): v for n, v in headers.items()}))

    def ids(self) -> list[str]:
        """`webhook-id` of what came, in order."""
        return [received.headers["webhook-id"] for received in self.received]


@contextmanager
def receiver() -> Iterator[Receiver]:
    """On a free port of this machine."""
    found: list[Receiver] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            found[0].received.append(Received(self.path, headers, body))
            found[0].may_answer.wait(30)
            status, extra = found[0].answers.popleft() if found[0].answers else (200, {})
            self.send_response(status)
            for name, value in {"content-length": "0", **extra}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_arguments: Any) -> None:
            """Into the tests' output nothing is written."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    found.append(Receiver(f"http://127.0.0.1:{server.server_address[1]}/hook"))
    found[0].may_answer.set()
    try:
        yield found[0]
    finally:
        found[0].may_answer.set()
        server.shutdown()
        thread.join()
        server.server_close()
