"""The tenant beside whom others misbehave: posts jobs at a steady pace and notes what each took.

`python -m benchmarks.abuse.victim URL HEADERS SECONDS` prints the milliseconds of every POST.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from contextlib import AsyncExitStack

from benchmarks.http.enqueue import BODY
from benchmarks.http_client import Connection
from cli.stack.files import ROOT

PER_S = 20
REFUSED_MS = 30_000.0  # what a POST that was refused counts as: the patience of a client


def post_ms(url: str, headers: dict[str, str], *, seconds: float) -> list[float]:
    """From a process of its own, which shares no interpreter with anything that it measures."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, url, json.dumps(headers), str(seconds)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    times: list[float] = json.loads(done.stdout.splitlines()[-1])
    return times


async def _post(url: str, headers: dict[str, str], seconds: float) -> list[float]:
    """Posts leave when they are due, whether or not those before have been answered."""
    async with AsyncExitStack() as stack:
        idle: list[Connection] = []

        async def post() -> float:
            started = time.monotonic()
            if idle:
                connection = idle.pop()
            else:
                connection = await stack.enter_async_context(Connection(url, headers))
            try:
                await connection.post("/v1/jobs", BODY)
            except (RuntimeError, OSError, EOFError):
                return REFUSED_MS
            idle.append(connection)
            return (time.monotonic() - started) * 1000

        started = time.monotonic()
        tasks = []
        for number in range(int(seconds * PER_S)):
            await asyncio.sleep(max(0.0, started + number / PER_S - time.monotonic()))
            tasks.append(asyncio.create_task(post()))
        return await asyncio.gather(*tasks)


if __name__ == "__main__":
    _url, _headers, _seconds = sys.argv[1:]
    print(json.dumps(asyncio.run(_post(_url, json.loads(_headers), float(_seconds)))))
