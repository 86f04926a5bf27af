"""Refusing thousands of peers in one moment without holding up those who are served meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from api.server.bounds import AT_ONCE_S, PAUSE_S


class Refusals:
    """One a server; used on its event loop alone."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: deque[Callable[[], None]] = deque()
        self._spent_s = 0.0  # on refusals since the last pause
        self._pause: asyncio.TimerHandle | None = None

    def add(self, refuse: Callable[[], None]) -> None:
        """Call it at once, or behind those before it if there are many."""
        if self._pause is None:
            self._begin_pause()
        if self._waiting or self._spent_s > AT_ONCE_S:
            self._waiting.append(refuse)
        else:
            self._call(refuse)

    def _begin_pause(self) -> None:
        self._pause = asyncio.get_running_loop().call_later(PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._spent_s = 0.0
        if not self._waiting:
            return
        self._begin_pause()  # first, so that one that fails holds up no other
        while self._waiting and self._spent_s <= AT_ONCE_S:
            self._call(self._waiting.popleft())

    def _call(self, refuse: Callable[[], None]) -> None:
        began = self._clock()
        try:
            refuse()
        finally:
            self._spent_s += self._clock() - began
