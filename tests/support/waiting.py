"""Waiting for a condition with a deadline; tests never sleep for a guessed time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable


def wait_until(is_true: Callable[[], object], *, timeout_s: float = 10.0, what: str = "it") -> None:
    """Ask every 5 ms until it is true. Raises AssertionError at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} didn't happen within {timeout_s:g} s")
        time.sleep(0.005)


async def until(
    is_true: Callable[[], object], *, timeout_s: float = 10.0, what: str = "it"
) -> None:
    """The same in a coroutine; `is_true` may be one that is to be awaited."""
    deadline = time.monotonic() + timeout_s
    while not await _answer(is_true):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} didn't happen within {timeout_s:g} s")
        await asyncio.sleep(0.005)


async def _answer(is_true: Callable[[], object]) -> object:
    answer = is_true()
    return await answer if inspect.isawaitable(answer) else answer
