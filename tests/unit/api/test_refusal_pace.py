"""Refusals of those who ask again at once are spread; one now and then is answered at once."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from api.limits.refusal_pace import MAX_WAIT_S, PER_S, RefusalPace


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how long each was to wait."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return found


async def test_the_first_is_answered_at_once_and_many_one_after_the_other(
    slept: list[float],
) -> None:
    pace = RefusalPace()

    for _ in range(4 * PER_S):
        await pace.turn_without_key()

    assert slept[0] == 0.0
    assert slept[-1] == pytest.approx(4.0, abs=0.5)


async def test_nobody_waits_longer_than_the_bound(slept: list[float]) -> None:
    pace = RefusalPace()

    for _ in range(100 * PER_S):
        await pace.turn_without_key()

    assert max(slept) <= MAX_WAIT_S


async def test_a_tenants_refusals_delay_no_others(slept: list[float]) -> None:
    pace, many, one = RefusalPace(), uuid4(), uuid4()

    for _ in range(PER_S):
        await pace.turn(many)
    await pace.turn(one)
    await pace.turn_without_key()

    assert slept[PER_S - 1] > 0.5
    assert slept[-2:] == [0.0, 0.0]
