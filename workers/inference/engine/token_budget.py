"""How many tokens one step may compute: less for a while after the device ran out of memory."""

from __future__ import annotations

_CLEAN_STEPS = 64  # without running out of memory, before more is tried again


class TokenBudget:
    """Starts at `full` and stays between `least` and `full`."""

    def __init__(self, full: int, *, least: int) -> None:
        self._full = max(full, least)
        self._least = least
        self._num_clean_steps = 0
        self.value = self._full

    def shrink_below(self, num_tokens: int) -> bool:
        """Halve until a step of `num_tokens` is too large. False if that is below the least."""
        if num_tokens <= self._least:
            return False
        while self.value >= num_tokens:
            self.value = max(self.value // 2, self._least)
        self._num_clean_steps = 0
        return True

    def note_clean_step(self) -> None:
        """A step went well: double after some of them."""
        if self.value == self._full:
            return
        self._num_clean_steps += 1
        if self._num_clean_steps >= _CLEAN_STEPS:
            self.value = min(self.value * 2, self._full)
            self._num_clean_steps = 0
