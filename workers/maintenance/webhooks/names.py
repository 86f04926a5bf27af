"""Looks up the hosts of endpoints, each on a thread of its own and only a few for one tenant.

The system's look-up blocks for half a minute when the servers of a name don't answer, and can't be
broken off. So a tenant's look-ups count until they really end, and delay nobody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from uuid import UUID
from weakref import WeakValueDictionary

MAX_OF_TENANT = 8

Resolve = Callable[[str, int], list[str]]


def system_addresses(host: str, port: int) -> list[str]:
    """Blocks. Raises OSError, and UnicodeError for what can't be a name."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]


class Names:
    """On one event loop."""

    def __init__(self, resolve: Resolve = system_addresses) -> None:
        self._resolve = resolve
        self._turns: WeakValueDictionary[UUID, asyncio.Semaphore] = WeakValueDictionary()

    async def addresses(self, tenant_id: UUID, host: str, port: int) -> list[str]:
        """Waits while the tenant has too many look-ups. Raises what `resolve` raises."""
        turns = self._turns.setdefault(tenant_id, asyncio.Semaphore(MAX_OF_TENANT))
        await turns.acquire()
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[str]] = loop.create_future()

        def note(addresses: list[str] | Exception) -> None:
            turns.release()
            if found.done():
                return  # nobody waits any more
            if isinstance(addresses, Exception):
                found.set_exception(addresses)
            else:
                found.set_result(addresses)

        def look_up() -> None:
            answer: list[str] | Exception
            try:
                answer = self._resolve(host, port)
            except Exception as error:  # the thread's boundary: raised where it is waited for
                answer = error
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(note, answer)

        # A daemon: a name without an answer must not keep the process from ending.
        try:
            threading.Thread(target=look_up, name="webhook-name", daemon=True).start()
        except RuntimeError:  # no more threads
            turns.release()
            raise
        return await found
