"""When to try again. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping

RETRIED_STATUSES = frozenset({408, 409, 429, 500, 502, 503, 504})
FIRST_DELAY_S = 0.5
MAX_DELAY_S = 8.0
# A server that asks for more patience than this is told to the caller instead.
MAX_RETRY_AFTER_S = 120.0


def delay_after_answer(attempt: int, status: int, headers: Mapping[str, str]) -> float | None:
    """Seconds to wait before the next try, None if there is to be none. `attempt` counts from 0."""
    if headers.get("x-should-retry") == "false" or status not in RETRIED_STATUSES:
        return None
    asked = _seconds(headers.get("retry-after"))
    if asked is None:
        return backoff(attempt)
    return asked if asked <= MAX_RETRY_AFTER_S else None


def backoff(attempt: int) -> float:
    """0.5, 1, 2, .. 8 s, each less up to a quarter, so that clients don't come back in step."""
    delay_s = min(FIRST_DELAY_S * 2.0**attempt, MAX_DELAY_S)
    return delay_s * (1 - random.random() / 4)


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text is not None else None
    except ValueError:
        return None
