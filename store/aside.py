"""Units of work on which a step failed, by their ids: left alone for a while, so that those behind
them get their turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID

FIRST_S = 2.0
MAX_S = 300.0
FORGET_S = 3_600.0  # without a failure


class Aside:
    """Each failure in a row doubles the time. A new process tries all of them at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: dict[UUID, tuple[int, float]] = {}  # how often, and until when it is aside

    def add(self, id_: UUID) -> int:
        """It failed. Returns how often it has."""
        num_before, _ = self._failed.get(id_, (0, 0.0))
        until = self._clock() + min(FIRST_S * 2**num_before, MAX_S)
        self._failed[id_] = (num_before + 1, until)
        return num_before + 1

    def ids(self) -> list[UUID]:
        """What to leave alone now."""
        now = self._clock()
        self._failed = {
            id_: failed for id_, failed in self._failed.items() if failed[1] > now - FORGET_S
        }
        return [id_ for id_, (_, until) in self._failed.items() if until > now]
