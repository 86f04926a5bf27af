"""When a delivery that failed is tried again: soon, then ever later, for a day."""

from __future__ import annotations

import random

_DELAYS_S = (5.0, 30.0, 120.0, 600.0, 1_800.0, 3_600.0, 7_200.0, 14_400.0)
JITTER = 0.2  # deliveries that failed together shall not come back together
MAX_ASKED_S = 3_600.0  # an endpoint may ask for so long a pause


def delay_s(attempts: int, *, asked_s: float | None = None) -> float:
    """Seconds after so many attempts. `asked_s`: what the endpoint's Retry-After said."""
    delay = _DELAYS_S[min(attempts, len(_DELAYS_S)) - 1] * random.uniform(1 - JITTER, 1 + JITTER)
    return max(delay, min(asked_s or 0.0, MAX_ASKED_S))
