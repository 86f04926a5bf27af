"""Cancellations that come over Redis: which job each ends, and what doesn't end the listening."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
import redis
from structlog.testing import capture_logs

from tasks.ids import uuid7
from tasks.keys import cancel_channel
from tests.support.services import Services
from tests.support.waiting import wait_until
from workers.inference.cancels import CancelListener


class _Worker:
    """Runs one job, on a connection to Redis of its own."""

    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url)
        self.job_id, self.worker_id = uuid7(), uuid7()
        self.aborted: list[str] = []
        self.runtime = SimpleNamespace(
            streams=self.client, worker_id=self.worker_id, find=self.find, abort=self.aborted.append
        )
        self.listener = CancelListener(cast(Any, self.runtime), poll_s=0.02)

    def find(self, job_id: UUID) -> str | None:
        return "job" if job_id == self.job_id else None

    def say(self, message: str | bytes) -> int:
        """To whoever listens; how many those were."""
        return int(self.client.publish(cancel_channel(self.runtime.worker_id), message))

    def hears(self) -> None:
        """It listens, and hears of its job. What is said to a connection that breaks is lost."""
        before = len(self.aborted)
        wait_until(
            lambda: self.say(self.job_id.hex) and len(self.aborted) > before, what="an abort"
        )


@pytest.fixture
def worker(services: Services) -> Iterator[_Worker]:
    worker = _Worker(services.redis_url)
    worker.listener.start()
    yield worker
    worker.listener.stop()
    worker.client.close()


def test_a_job_that_runs_here_is_aborted_and_any_other_is_not_ours(worker: _Worker) -> None:
    wait_until(lambda: worker.say(uuid7().hex), what="a listener")

    worker.say(worker.job_id.hex)

    wait_until(lambda: worker.aborted)
    assert worker.aborted == ["job"]


def test_what_is_not_understood_ends_nothing(worker: _Worker) -> None:
    with capture_logs() as logs:
        wait_until(lambda: worker.say("not an id"), what="a listener")
        worker.say(b"\xff\x00")

        worker.hears()

    assert [entry["event"] for entry in logs] == ["cancel_not_understood"] * 2


def test_a_fault_of_one_cancellation_costs_that_one_alone(worker: _Worker) -> None:
    faults = [ZeroDivisionError("of this one alone")]

    def find(job_id: UUID) -> str | None:
        if faults:
            raise faults.pop()
        return worker.find(job_id)

    worker.runtime.find = find
    wait_until(lambda: worker.say(worker.job_id.hex), what="a listener")
    wait_until(lambda: not faults)

    worker.hears()


def test_a_worker_with_a_new_lease_hears_by_its_new_name(worker: _Worker) -> None:
    worker.hears()

    worker.runtime.worker_id = uuid7()

    worker.hears()
    assert worker.client.pubsub_numsub(cancel_channel(worker.worker_id))[0][1] == 0


def test_a_connection_that_breaks_is_made_anew(worker: _Worker) -> None:
    worker.hears()

    worker.client.client_kill_filter(_type="pubsub")

    worker.hears()


@pytest.mark.parametrize("fault", [redis.ConnectionError(), ZeroDivisionError()])
def test_a_redis_that_is_away_is_asked_again_after_a_pause(
    worker: _Worker, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    worker.hears()
    tries: list[float] = []
    pubsub = worker.client.pubsub

    def away(**options: Any) -> Any:
        tries.append(time.monotonic())
        if len(tries) < 4:
            raise fault
        return pubsub(**options)  # type: ignore[no-untyped-call]  # redis-py's gap

    monkeypatch.setattr(worker.client, "pubsub", away)
    worker.client.client_kill_filter(_type="pubsub")

    worker.hears()
    assert tries[3] - tries[0] >= 3 * 0.02


def test_a_stop_is_waited_for(worker: _Worker) -> None:
    worker.hears()

    worker.listener.stop()

    assert not worker.listener._thread.is_alive()
    wait_until(lambda: not worker.say(worker.job_id.hex), what="a silence")
