"""Readers of event streams in a process of their own, and how they are told apart.

`python -m benchmarks.http.streams URL HEADERS NUM PATH...` opens NUM streams over the paths by
turns, prints `open` when all have their first byte, counts events until standard input ends, and
prints how many there were.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Self
from urllib.parse import urlsplit

from cli.stack.files import ROOT

OPENING_AT_ONCE = 64


class Readers:
    """The process. A context manager; leaving it closes the streams."""

    def __init__(self, url: str, headers: dict[str, str], num: int, paths: Sequence[str]) -> None:
        self._arguments = [url, json.dumps(headers), str(num), *paths]
        self.num_events = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.http.streams", *self._arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert _line(self._process.stdout) == "open"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        if kind is None:
            self.num_events = int(_line(self._process.stdout))
        self._process.wait(timeout=60)


def _line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline().strip()


async def _read(url: str, headers: dict[str, str], num: int, paths: Sequence[str]) -> None:
    parts = urlsplit(url)
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    counts = [0]
    is_free = asyncio.Semaphore(OPENING_AT_ONCE)
    opened = asyncio.Queue[None]()

    async def follow(path: str) -> None:
        async with is_free:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=8192)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            opened.put_nowait(None)
        while data := await reader.read(8192):
            counts[0] += data.count(b"\n\n")

    tasks = [asyncio.create_task(follow(paths[number % len(paths)])) for number in range(num)]
    for _ in range(num):
        await opened.get()
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(counts[0], flush=True)
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    url, headers, num, *paths = sys.argv[1:]
    asyncio.run(_read(url, json.loads(headers), int(num), paths))
