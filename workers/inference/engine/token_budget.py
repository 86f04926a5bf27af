"""How many tokens one step may compute: no more than others can wait for.

And fewer for a while after the device ran out of memory.
"""

from __future__ import annotations

_CLEAN_STEPS = 64  # without running out of memory, before more is tried again
# Between two tokens of a stream while others' prompts are computed; far less than a lease.
LONG_STEP_S = 2.0


class TokenBudget:
    """Stays between `least` and `full`.

    Begins at `first`, since nobody knows how fast the device is: full steps double it for as long
    as they are short.
    """

    def __init__(self, full: int, *, least: int, first: int | None = None) -> None:
        self._full = max(full, least)
        self._least = least
        self._num_clean_steps = 0
        self._fits_memory = self._full
        self._fits_time = self._full if first is None else self._bounded(first)

    @property
    def value(self) -> int:
        return min(self._fits_memory, self._fits_time)

    def shrink_below(self, num_tokens: int) -> bool:
        """Halve until a step of `num_tokens` is too large. False if that is below the least."""
        if num_tokens <= self._least:
            return False
        while self._fits_memory >= num_tokens:
            self._fits_memory = self._bounded(self._fits_memory // 2)
        self._num_clean_steps = 0
        return True

    def note_clean_step(self, num_tokens: int, seconds: float) -> None:
        """A step went well."""
        if seconds > LONG_STEP_S:
            self._fits_time = self._bounded(int(num_tokens * LONG_STEP_S / seconds))
        elif seconds <= LONG_STEP_S / 2 and num_tokens > self._fits_time // 2:
            self._fits_time = self._bounded(self._fits_time * 2)
        if self._fits_memory < self._full:
            self._note_room()

    def _note_room(self) -> None:
        """Double after some steps that did not run out of memory."""
        self._num_clean_steps += 1
        if self._num_clean_steps >= _CLEAN_STEPS:
            self._fits_memory = self._bounded(self._fits_memory * 2)
            self._num_clean_steps = 0

    def _bounded(self, num_tokens: int) -> int:
        return max(self._least, min(num_tokens, self._full))
