from __future__ import annotations

import threading
from typing import Any
from uuid import uuid4

import pytest

from tasks import billing
from tasks.app import app
from tests.support.waiting import wait_until


def _num_lost(why: str) -> float:
    return float(billing.LOST.labels(why)._value.get())


def test_a_hint_that_the_broker_does_not_take_is_counted_and_those_behind_it_are_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[tuple[Any, ...]] = []

    def send_task(name: str, *, args: tuple[Any, ...], queue: str) -> None:
        sent.append(args)
        if len(sent) == 1:
            raise ConnectionError

    monkeypatch.setattr(app, "send_task", send_task)
    num_lost, num_sent = _num_lost("failed"), billing.SENT._value.get()
    jobs = [uuid4().hex, uuid4().hex]
    sender = billing._Sender(interval_s=0.01)

    for num, job_id in enumerate(jobs, start=1):
        sender.put(billing.SettleArgs(job_id))
        wait_until(lambda num=num: len(sent) == num)  # type: ignore[misc]

    wait_until(lambda: billing.SENT._value.get() == num_sent + 1)
    assert _num_lost("failed") == num_lost + 1
    assert sent == [(job_id,) for job_id in jobs]


def test_all_hints_go_over_one_thread_and_another_if_that_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a child that was forked: threads are not inherited."""
    senders: list[threading.Thread] = []
    monkeypatch.setattr(
        app, "send_task", lambda *_, **__: senders.append(threading.current_thread())
    )
    sender = billing._Sender(interval_s=0.01)
    ended = threading.Thread(target=int)
    ended.start()
    ended.join()
    sender._thread = ended

    for num in (1, 2):
        sender.put(billing.SettleArgs(uuid4().hex))
        wait_until(lambda num=num: len(senders) == num)  # type: ignore[misc]

    assert senders == [sender._thread] * 2
    assert senders[0].daemon


def test_a_settled_jobs_hint_is_its_id_in_billings_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        app, "send_task", lambda name, *, args, queue: sent.append((name, args, queue.name))
    )
    job_id = uuid4()

    billing.enqueue_settle(job_id)

    wait_until(lambda: sent)
    assert sent == [("billing.settle", (job_id.hex,), "billing")]


def test_hints_that_come_close_together_go_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    is_sending, may_go_on = threading.Event(), threading.Event()
    sent: list[tuple[Any, ...]] = []

    def send_task(_name: str, *, args: tuple[Any, ...], queue: str) -> None:
        sent.append(args)
        is_sending.set()
        may_go_on.wait()

    monkeypatch.setattr(app, "send_task", send_task)
    sender = billing._Sender(interval_s=0.01)
    first, *later = (uuid4().hex for _ in range(100))
    sender.put(billing.SettleArgs(first))
    assert is_sending.wait(10)

    for job_id in later:
        sender.put(billing.SettleArgs(job_id))
    may_go_on.set()

    wait_until(lambda: len(sent) == 2)
    assert sent == [(first,), (later[-1],)]
    assert not sender._is_due.is_set()
