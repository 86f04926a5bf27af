"""An API process that watches its own event loop, as users run it: uvloop, all its bounds.

A beat is due every ms. How long the loop was held between two of them is told in CPU time of the
whole process, which other processes can't lengthen, and which a call that keeps the interpreter in
another thread lengthens too. No pytest in here: benchmarks use it too.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, TextIO

import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.server.__main__ import prepare, server_config
from api.server.connections import Connections

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]

BEAT_S = 0.001
MAX_CONNECTIONS = 256


class WatchedApi:
    """The process, seen from the test."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url = url
        self._process = process

    def held_s(self) -> float:
        """The longest between two beats since it was asked last."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline()))


@contextmanager
def watched_api() -> Iterator[WatchedApi]:
    """With the settings of this process's environment."""
    command = [sys.executable, "-m", "tests.support.watched_api"]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        try:
            assert process.stdout
            yield WatchedApi(json.loads(process.stdout.readline()), process)
        finally:
            process.kill()


class _Beats:
    """Of the loop that it was made in."""

    def __init__(self) -> None:
        self._worst_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._last_s = time.process_time()
        self._beat()

    async def take_worst(self) -> float:
        """On the loop itself, so that what holds it now is counted."""
        worst_s, self._worst_s = self._worst_s, 0.0
        return worst_s

    def _beat(self) -> None:
        now_s = time.process_time()
        self._worst_s = max(self._worst_s, now_s - self._last_s)
        self._last_s = now_s
        self._loop.call_later(BEAT_S, self._beat)


def main() -> None:
    """The first line out is the address; each line in asks how long the loop was held."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # for the log
    app = create_app()
    prepare(app)
    config = server_config(app, Connections(MAX_CONNECTIONS))
    listener = config.bind_socket()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    app.router.lifespan_context = _watching(app.router.lifespan_context, answers, url)
    uvicorn.Server(config).run(sockets=[listener])


def _watching(lifespan: Lifespan, answers: TextIO, url: str) -> Lifespan:
    @asynccontextmanager
    async def watched(app: FastAPI) -> AsyncIterator[Any]:
        async with lifespan(app) as state:
            loop = asyncio.get_running_loop()
            arguments = (loop, _Beats(), answers, url)
            threading.Thread(target=_answer, args=arguments, daemon=True).start()
            yield state

    return watched


def _answer(loop: asyncio.AbstractEventLoop, beats: _Beats, answers: TextIO, url: str) -> None:
    print(json.dumps(url), file=answers, flush=True)
    for _ in sys.stdin:
        worst_s = asyncio.run_coroutine_threadsafe(beats.take_worst(), loop).result()
        print(json.dumps(worst_s), file=answers, flush=True)


if __name__ == "__main__":
    main()
