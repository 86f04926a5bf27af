"""Waiting for a condition with a deadline; tests never sleep for a guessed time."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(is_true: Callable[[], object], *, timeout_s: float = 10.0, what: str = "it") -> None:
    """Ask every 5 ms until it is true. Raises AssertionError at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} didn't happen within {timeout_s:g} s")
        time.sleep(0.005)
