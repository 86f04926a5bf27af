"""Tenants that misbehave, each kind in a process of its own.

`python -m benchmarks.abuse.attackers KIND URL HEADERS PATH...` prints `ready` once the abuse has
begun and goes on until its standard input ends. Kinds:

- `half_sent`: sockets that hold half of a request's head, without a key;
- `idle`: the paths held open, for streams and long polls;
- `get`: the paths asked for over and over, as fast as the answers come;
- `post`: the largest legal body, over and over, to the one path;
- `bad_keys`: the one path with keys that are well formed and don't exist, a new one each time.

A connection that is refused or closed is opened again after PAUSE_S, so that what is measured is
the server and not the attacker's own CPU, which comes from the same cores.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import resource
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from cli.stack.files import ROOT
from store import api_keys

NUM_IDLE = 1_100  # more than the 1,024 descriptors that a process commonly has
NUM_BUSY = 32
PAUSE_S = 0.1
BODY_CHARS = 900_000  # of the 1 MiB that a body may have


class Attacker:
    """The process. A context manager; leaving it ends the abuse."""

    def __init__(self, kind: str, url: str, headers: dict[str, str], paths: Sequence[str]) -> None:
        self._arguments = [kind, url, json.dumps(headers), *paths]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *self._arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"no abuse of kind {self._arguments[0]}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()


class _Target:
    def __init__(self, url: str, headers: dict[str, str]) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        self._headers = headers

    async def hold(self, request: bytes) -> None:
        """Send, and read until the server ends it."""
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            writer.write(request)
            while await reader.read(65_536):
                pass
        finally:
            writer.close()

    async def ask(self, requests: Iterator[bytes]) -> None:
        """One request after the other on one connection, until an answer is a refusal."""
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            for request in requests:
                writer.write(request)
                if not await _read_answer(reader):
                    return
        finally:
            writer.close()

    def get(self, path: str) -> bytes:
        return self._head("GET", path, self._headers)

    def post(self, path: str, body: bytes) -> bytes:
        extra = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        return self._head("POST", path, self._headers | extra) + body

    def with_bad_key(self, path: str) -> bytes:
        return self._head("GET", path, {"Authorization": f"Bearer {api_keys.generate().text}"})

    @staticmethod
    def _head(method: str, path: str, headers: dict[str, str]) -> bytes:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode()


async def _read_answer(reader: asyncio.StreamReader) -> bool:
    """Read one answer to its end. False: it was a refusal, or the connection is over."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = head.partition(b"content-length: ")[2].partition(b"\r")[0]
    if length:
        await reader.readexactly(int(length))
    else:
        while size := int(await reader.readline(), 16):
            await reader.readexactly(size + 2)
        await reader.readline()
    return head.split(b" ")[1] not in (b"429", b"503")


async def _over_and_over(abuse: Callable[[], Awaitable[None]]) -> None:
    while True:
        with suppress(OSError, EOFError):  # refused, or cut off
            await abuse()
        await asyncio.sleep(PAUSE_S)


def _abuses(
    kind: str, target: _Target, paths: Sequence[str]
) -> list[Callable[[], Awaitable[None]]]:
    if kind == "half_sent":
        half = b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nX-Slow: "
        return [lambda: target.hold(half)] * NUM_IDLE
    if kind == "idle":
        return [
            lambda path=path: target.hold(target.get(path))  # type: ignore[misc]
            for path in itertools.islice(itertools.cycle(paths), NUM_IDLE)
        ]
    requests = _requests(kind, target, paths)
    return [lambda: target.ask(requests)] * NUM_BUSY


def _requests(kind: str, target: _Target, paths: Sequence[str]) -> Iterator[bytes]:
    if kind == "get":
        return itertools.cycle([target.get(path) for path in paths])
    if kind == "post":
        body = {"model": "demo", "prompt": "word " * (BODY_CHARS // 5), "max_tokens": 1}
        return itertools.repeat(target.post(paths[0], json.dumps(body).encode()))
    if kind == "bad_keys":
        return (target.with_bad_key(paths[0]) for _ in itertools.count())
    raise SystemExit(f"no such kind of abuse: {kind}")


async def _attack(kind: str, url: str, headers: dict[str, str], paths: Sequence[str]) -> None:
    abuses = _abuses(kind, _Target(url, headers), paths)
    tasks = [asyncio.create_task(_over_and_over(abuse)) for abuse in abuses]
    await asyncio.sleep(1.0)  # all connections are made, or refused
    print("ready", flush=True)
    await asyncio.gather(*tasks)


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _kind, _url, _headers, *_paths = sys.argv[1:]
    asyncio.run(_attack(_kind, _url, json.loads(_headers), _paths))
