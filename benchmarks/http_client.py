"""A minimal HTTP/1.1 client over asyncio streams, so that a benchmark measures the server.

General clients take several milliseconds of CPU a request, on the cores that the platform runs on.
Understands what our API sends: Content-Length bodies and chunked streams, one request at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import orjson

Event = tuple[bytes, bytes]  # event name, data


class Connection:
    """One keep-alive connection. Not shared between tasks."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        self._head = f"Host: {parts.netloc}\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in headers.items()
        )

    async def __aenter__(self) -> Self:
        host, port = self._address
        self._reader, self._writer = await asyncio.open_connection(host, port)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()

    async def post(self, path: str, body: Any) -> Any:
        """The parsed JSON answer. Raises RuntimeError for a status above 299."""
        self._send(path, body)
        head = await self._read_head()
        answer = await self._reader.readexactly(int(head[b"content-length"]))
        if int(head[b"status"]) >= 300:
            raise RuntimeError(answer.decode())
        return orjson.loads(answer)

    async def events(self, path: str) -> AsyncIterator[Event]:
        """Server-sent events to the end of the stream."""
        self._writer.write(f"GET {path} HTTP/1.1\r\n{self._head}\r\n".encode())
        async for event in self._events():
            yield event

    async def post_events(self, path: str, body: Any) -> AsyncIterator[Event]:
        """Server-sent events that answer a body."""
        self._send(path, body)
        async for event in self._events():
            yield event

    def _send(self, path: str, body: Any) -> None:
        data = orjson.dumps(body)
        self._writer.write(
            f"POST {path} HTTP/1.1\r\n{self._head}Content-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )

    async def _events(self) -> AsyncIterator[Event]:
        head = await self._read_head()
        if int(head[b"status"]) >= 300:
            raise RuntimeError(f"status {head[b'status']!r}")
        rest = b""
        async for chunk in self._chunks():
            *blocks, rest = (rest + chunk).split(b"\n\n")
            for block in blocks:
                yield _parse(block)

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self._reader.readline(), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readline()

    async def _read_head(self) -> dict[bytes, bytes]:
        lines = (await self._reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        head = {b"status": lines[0].split()[1]}
        for line in lines[1:-2]:
            name, _, value = line.partition(b":")
            head[name.lower()] = value.strip()
        return head


def _parse(block: bytes) -> Event:
    name, data = b"message", b""
    for line in block.split(b"\n"):
        if line.startswith(b"event: "):
            name = line[7:]
        elif line.startswith(b"data: "):
            data = line[6:]
    return name, data
