from __future__ import annotations

import gc

import pytest

from api.streams import garbage
from api.streams.garbage import Collector
from api.streams.open_streams import OpenStreams


def test_what_has_come_to_stay_is_swept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    collects: list[None] = []
    counts = iter([10, 500, 480, 480, 480, 700, 480])
    monkeypatch.setattr(gc, "get_freeze_count", lambda: next(counts))
    for name in ("unfreeze", "freeze"):
        monkeypatch.setattr(gc, name, lambda: None)
    monkeypatch.setattr(gc, "collect", lambda: collects.append(None))
    collector = Collector(OpenStreams(10), max_left=100)

    collector.sweep()  # 490 more than at the start, of which 470 live on
    assert len(collects) == 1
    collector.sweep()
    collector.sweep()
    assert len(collects) == 1
    collector.sweep()  # 220 more than live on

    assert len(collects) == 2


@pytest.mark.parametrize(("num_open", "is_frozen"), [(garbage.FEW, 0), (garbage.FEW + 1, 1)])
def test_few_streams_need_no_care(
    monkeypatch: pytest.MonkeyPatch, num_open: int, is_frozen: int
) -> None:
    frozen: list[None] = []
    monkeypatch.setattr(gc, "collect", lambda: None)
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(None))
    monkeypatch.setattr(OpenStreams, "num_open", num_open)

    Collector(OpenStreams(10)).look()

    assert len(frozen) == is_frozen
