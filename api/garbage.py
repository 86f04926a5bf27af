"""Keeps open requests out of the garbage collector's way.

A stream or a long poll holds a few hundred objects for as long as it is open, and so does a request
that waits for its turn. Whenever their number has grown by a quarter, Python's collector looks
through all of them at once: 200 ms for a thousand requests, in which the event loop stands still.
So what has just been looked through is frozen, that is, left out from then on, as what was there at
the start is (`api.server`).

A frozen object is freed like any other when nothing refers to it. What refers to itself stays, as
a closed connection of asyncio does: some five objects a stream. When many of these have come
together, all is looked through once, however long that takes.
"""

from __future__ import annotations

import asyncio
import gc

INTERVAL_S = 0.5
SWEEP_INTERVAL_S = 60.0
FEW = 100  # requests that need no care: some 20 ms
OBJECTS_A_REQUEST = 500  # at most; those of requests that are open have not been left behind
MAX_LEFT = 100_000  # objects, of 20,000 streams; some 30 MB


class Collector:
    """Looks after the requests of one process, on its event loop."""

    def __init__(self, *, max_left: int = MAX_LEFT) -> None:
        self._max_left = max_left
        self._num_kept = gc.get_freeze_count()  # objects that live on, those of requests aside
        self._num_open = 0
        self._num_frozen = 0  # of those that are open, at most

    def enter(self) -> None:
        """A request has come. Looks at once when many have, and not half a second later at all."""
        self._num_open += 1
        if self._num_open - self._num_frozen > FEW:
            self._freeze()

    def leave(self) -> None:
        """It is over."""
        self._num_open -= 1
        self._num_frozen = min(self._num_frozen, self._num_open)

    async def run(self) -> None:
        """Look again and again, for ever."""
        looks_a_sweep = round(SWEEP_INTERVAL_S / INTERVAL_S)
        while True:
            for _ in range(looks_a_sweep):
                await asyncio.sleep(INTERVAL_S)
                self.look()
            self.sweep()

    def look(self) -> None:
        """Costs what open requests have come to hold since the last look."""
        if self._num_open > FEW:
            self._freeze()

    def sweep(self) -> None:
        """Free what ended requests have left behind, once it is much. Counting takes some ms."""
        num_open = self._num_open * OBJECTS_A_REQUEST
        if gc.get_freeze_count() - self._num_kept - num_open > self._max_left:
            gc.unfreeze()
            self._freeze()
            # Else what has come to stay, as keys and tokenizers do, would be swept at every look.
            self._num_kept = max(self._num_kept, gc.get_freeze_count() - num_open)

    def _freeze(self) -> None:
        gc.collect()
        gc.freeze()
        self._num_frozen = self._num_open
