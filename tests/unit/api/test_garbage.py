from __future__ import annotations

import gc

import pytest

from api.garbage import FEW, Collector


def test_what_has_come_to_stay_is_swept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    collects: list[None] = []
    counts = iter([10, 500, 480, 480, 480, 700, 480])
    monkeypatch.setattr(gc, "get_freeze_count", lambda: next(counts))
    for name in ("unfreeze", "freeze"):
        monkeypatch.setattr(gc, name, lambda: None)
    monkeypatch.setattr(gc, "collect", lambda: collects.append(None))
    collector = Collector(max_left=100)

    collector.sweep()  # 490 more than at the start, of which 470 live on
    assert len(collects) == 1
    collector.sweep()
    collector.sweep()
    assert len(collects) == 1
    collector.sweep()  # 220 more than live on

    assert len(collects) == 2


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each time that all there is was frozen."""
    times: list[None] = []
    monkeypatch.setattr(gc, "collect", lambda: None)
    monkeypatch.setattr(gc, "freeze", lambda: times.append(None))
    return times


def test_few_requests_need_no_care(frozen: list[None]) -> None:
    collector = Collector()

    for _ in range(FEW):
        collector.enter()
    collector.look()

    assert not frozen


def test_each_hundred_that_come_at_once_are_frozen_as_they_come(frozen: list[None]) -> None:
    collector = Collector()

    for _ in range(11 * FEW):
        collector.enter()

    assert len(frozen) == 10
    collector.look()
    assert len(frozen) == 11, "for what they have come to hold since"


def test_requests_that_end_make_room_for_new_ones(frozen: list[None]) -> None:
    collector = Collector()
    for _ in range(FEW + 1):
        collector.enter()
    assert len(frozen) == 1

    for _ in range(5 * FEW):  # many, and one after the other
        collector.leave()
        collector.enter()
    assert len(frozen) == 1

    for _ in range(FEW + 1):
        collector.leave()
    for _ in range(FEW):
        collector.enter()
    assert len(frozen) == 1
    collector.enter()
    assert len(frozen) == 2
