"""Work that would hold the event loop too long if it were done at once.

What can be cut is done in pieces of a few ms, one a turn of the loop, whoever's it is: a hundred
clients that ask for much at once wait for each other, and nobody else waits for them. What can't,
but is Python's own bytecode, runs on one thread, from which the loop takes the interpreter back
after 5 ms. A single call of C that takes long is for neither: bound what it is given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

# Characters of text that are taken apart in less time than a change of threads is worth.
SHORT_CHARS = 16_384
PIECE_CHARS = 128 << 10  # of JSON to be read on the thread, which take some 50 ms at most


class LongWork:
    """One an API process."""

    def __init__(self) -> None:
        self._turns = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="long-work")

    def close(self) -> None:
        """Drop what waits and end the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def turn(self) -> None:
        """Wait for this piece's turn. What runs until the next `await` is the piece."""
        async with self._turns:  # served in order
            await asyncio.sleep(0)

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """On the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    async def unless_short(self, num_chars: int, work: Callable[[], T]) -> T:
        """Work on so much text: at once, or on the thread."""
        return work() if num_chars <= SHORT_CHARS else await self.run(work)


def in_pieces(things: Sequence[T], num_chars: Callable[[T], int]) -> Iterator[list[T]]:
    """What is worked on in one go, while other requests wait: few where they are long."""
    piece: list[T] = []
    length = 0
    for thing in things:
        piece.append(thing)
        length += num_chars(thing)
        if length > PIECE_CHARS:
            yield piece
            piece, length = [], 0
    if piece:
        yield piece
