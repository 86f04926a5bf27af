"""A proxy whose connections break all the time."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx


@asynccontextmanager
async def breaking_proxy(url: str) -> AsyncIterator[str]:
    """Cuts every connection after 100 to 300 ms, wherever it is in its bytes."""
    target = httpx.URL(url)
    rng = random.Random(7)
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = await asyncio.open_connection(target.host, target.port)
        pumps = asyncio.gather(_pump(reader, upstream[1]), _pump(upstream[0], writer))
        with contextlib.suppress(TimeoutError, OSError):
            await asyncio.wait_for(pumps, rng.uniform(0.1, 0.3))
        for each in (writer, upstream[1]):
            each.transport.abort()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(handle(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(4096):
        writer.write(data)
        await writer.drain()
