from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from api import hints, metrics
from api.hints import HintSender
from tasks.ids import uuid7
from tasks.inference import Hint
from tasks.queues import ServiceTier
from tests.support.waiting import wait_until


def _hint() -> Hint:
    return Hint(uuid7(), "default", ServiceTier.DEFAULT, 0)


def test_hints_that_queue_up_leave_together() -> None:
    batches: list[list[Hint]] = []
    may_go = threading.Event()

    def publish(batch: Sequence[Hint]) -> None:
        batches.append(list(batch))
        may_go.wait(5)

    sender = HintSender(publish)
    sender.start()
    sent = [_hint() for _ in range(5)]
    sender.send(sent[0])
    wait_until(lambda: batches)
    for hint in sent[1:]:
        sender.send(hint)
    may_go.set()
    sender.stop()

    assert batches == [sent[:1], sent[1:]]


def test_failure_is_survived_and_the_next_hint_leaves() -> None:
    seen: list[Hint] = []

    def publish(batch: Sequence[Hint]) -> None:
        seen.extend(batch)
        if len(seen) == 1:
            raise OSError("no Redis")

    sender = HintSender(publish)
    sender.start()
    sender.send(_hint())
    wait_until(lambda: seen)
    sender.send(_hint())
    sender.stop()

    assert len(seen) == 2


def test_old_hints_are_left_to_the_rehinter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints, "MAX_AGE_S", -1.0)
    seen: list[Hint] = []
    sender = HintSender(seen.extend)
    sender.start()

    sender.send(_hint())
    sender.stop()

    assert seen == []


def test_full_queue_never_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints, "MAX_QUEUED", 2)
    seen: list[Hint] = []
    sender = HintSender(seen.extend)  # not started: nobody takes anything
    lost = metrics.hints_lost.labels("queue_full")
    num_lost_before = lost._value.get()
    sent = [_hint() for _ in range(5)]

    for hint in sent:
        sender.send(hint)
    num_lost = lost._value.get() - num_lost_before
    sender.start()
    wait_until(lambda: len(seen) == 2)
    sender.stop()

    assert num_lost == 3
    assert seen == sent[:2]
