"""One attempt from its claim to its last write: what is asked of whom, in which order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY

from store.attempts import Claimed, Finish, Requeue
from tasks.errors import DeadlineExceeded
from tasks.ids import uuid7
from tasks.jobs import (
    CANCELLED_BY_USER,
    COMPLETED,
    DEADLINE_AFTER_START,
    DEADLINE_BEFORE_START,
    ENGINE_ERROR,
    MAX_OUTPUT_TOKENS,
    Ending,
    Payer,
)
from tests.unit.worker.test_job_stream import new_stream, output
from workers.inference import run_job as running
from workers.inference.engine.errors import EngineError
from workers.inference.engine.protocol import FinishReason, TokenOutput
from workers.inference.job_stream import JobStream
from workers.inference.resume import StreamTaken
from workers.inference.run_job import DEADLINE_GRACE_S, run_job
from workers.inference.runtime import RunningJob

WORKER = uuid7()


class _Finished(threading.Event):
    """Notes how long it was waited for; nobody really waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        return self.is_set()


class _Worker:
    """The parts that an attempt needs. `engine_says` is done at the submission."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **claimed: Any) -> None:
        self.happened: list[Any] = []
        self.held: list[RunningJob] = []
        self.written: list[Finish | Requeue] = []
        self.stream = self._new_stream(claimed)
        self.engine_says: Callable[[JobStream], None] = lambda _stream: None
        self.asked_by: str | None = None
        self.is_mine = True
        self.engine = SimpleNamespace(submit=self._submit)
        self.publisher = SimpleNamespace(
            register=lambda request_id, *_: self.happened.append(("register", request_id)),
            flush=lambda stream: self.happened.append(("flush", stream.last_seq)),
            forget=lambda request_id: self.happened.append(("forget", request_id)),
        )
        self.pool = SimpleNamespace(connection=self._connection)
        monkeypatch.setattr(running, "open_stream", lambda *_: self.stream)
        monkeypatch.setattr(running, "attempts", self)
        monkeypatch.setattr(
            running, "enqueue_settle", lambda job_id: self.happened.append(("settle", job_id))
        )

    @staticmethod
    def _new_stream(claimed: dict[str, Any]) -> JobStream:
        stream = new_stream()
        stream.claimed = replace(stream.claimed, attempt=2, **claimed)
        stream.finished = _Finished()
        return stream

    @contextmanager
    def _connection(self) -> Iterator[str]:
        yield "connection"

    def _submit(self, request: Any) -> None:
        self.happened.append(("submit", request.request_id))
        self.engine_says(self.stream)

    def abort(self, job: RunningJob) -> None:
        self.happened.append(("abort", job.request_id))

    def add(self, job: RunningJob) -> None:
        self.held.append(job)

    def remove(self, job: RunningJob) -> None:
        self.held.remove(job)

    # Of store.attempts.

    def finish(self, _connection: str, record: Finish) -> bool:
        assert self.held[0].is_concluding
        self.written.append(record)
        return self.is_mine

    def requeue(self, _connection: str, back: Requeue) -> None:
        assert self.held[0].is_concluding
        self.written.append(back)

    def cancel_asked_by(self, _connection: str, job_id: Any) -> str | None:
        assert job_id == self.stream.job_id
        return self.asked_by

    @property
    def request_id(self) -> str:
        return f"{self.stream.job_id.hex}.2"

    @property
    def waits(self) -> list[float | None]:
        return cast(_Finished, self.stream.finished).waits

    def run(self, says: Callable[[JobStream], None] | None = None) -> None:
        if says is not None:
            self.engine_says = says
        claimed: Claimed = self.stream.claimed
        run_job(cast(Any, self), cast(Any, None), claimed, WORKER)
        assert self.held == []

    def finished(self) -> Finish:
        [record] = self.written
        assert isinstance(record, Finish)
        assert (record.job_id, record.attempt, record.worker_id) == (self.stream.job_id, 2, WORKER)
        return record

    def given_back(self) -> Requeue:
        [back] = self.written
        assert isinstance(back, Requeue)
        assert (back.job_id, back.attempt, back.worker_id) == (self.stream.job_id, 2, WORKER)
        return back


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> _Worker:
    return _Worker(monkeypatch)


@pytest.fixture
def counted() -> Callable[[], dict[str, float]]:
    """What has been counted since: attempts by outcome, and jobs that had a first token."""

    def count() -> dict[str, float]:
        names = ("ok", "error", "cancelled", "drained", "fenced")
        labels = {"model": "stub", "tier": "default"}
        found = {
            name: REGISTRY.get_sample_value("millrace_attempts_total", labels | {"outcome": name})
            for name in names
        }
        first = {"stage": "first_token"}
        found["first token"] = REGISTRY.get_sample_value("millrace_stage_seconds_count", first)
        return {name: value or 0 for name, value in found.items()}

    before = count()
    return lambda: {name: n - before[name] for name, n in count().items() if n > before[name]}


def _ends(reason: FinishReason, *tokens: int, **fields: Any) -> Callable[[JobStream], None]:
    """The engine's one output."""

    def say(stream: JobStream) -> None:
        stream.add_output(output("a" * len(tokens), *tokens, reason=reason, **fields))
        stream.close()

    return say


@pytest.mark.parametrize(
    ("reason", "ending"),
    [
        (FinishReason.STOP, COMPLETED),
        (FinishReason.LENGTH, MAX_OUTPUT_TOKENS),
        (FinishReason.DEADLINE, DEADLINE_AFTER_START),
    ],
)
def test_an_attempt_that_ends_is_written_then_said_then_settled(
    worker: _Worker, counted: Callable[[], dict[str, float]], reason: FinishReason, ending: Ending
) -> None:
    worker.run(_ends(reason, 7, cached_tokens=1))

    record = worker.finished()
    assert (record.ending, record.attempt_outcome, record.cached_tokens) == (ending, "ok", 1)
    assert (record.output_tokens, record.last_seq, record.error_code) == (1, 3, None)
    assert worker.happened == [
        ("register", worker.request_id),
        ("flush", 1),
        ("submit", worker.request_id),
        ("flush", 3),
        ("settle", worker.stream.job_id),
        ("forget", worker.request_id),
    ]
    assert counted() == {"ok": 1, "first token": 1}


def test_a_deadline_before_the_first_token_is_a_failure_of_nobody(
    worker: _Worker, counted: Callable[[], dict[str, float]]
) -> None:
    worker.run(_ends(FinishReason.DEADLINE, cached_tokens=1))

    record = worker.finished()
    assert record.ending == DEADLINE_BEFORE_START
    assert (record.cached_tokens, record.cost_micros, record.output) == (0, 0, [])
    assert (record.error_code, record.error_message) == (
        DeadlineExceeded.code,
        DeadlineExceeded().message,
    )
    assert counted() == {"ok": 1}


def test_a_stream_that_is_anothers_is_left_alone(
    worker: _Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(*_: Any) -> JobStream:
        raise StreamTaken

    monkeypatch.setattr(running, "open_stream", taken)

    worker.run()

    assert worker.happened == []
    assert worker.written == []


def test_an_attempt_that_is_fenced_writes_nothing(
    worker: _Worker, counted: Callable[[], dict[str, float]]
) -> None:
    worker.run(JobStream.fence)

    assert worker.written == []
    assert worker.happened[3:] == [("abort", worker.request_id), ("forget", worker.request_id)]
    assert counted() == {"fenced": 1}


def test_an_end_that_is_refused_is_neither_said_nor_settled(
    worker: _Worker, counted: Callable[[], dict[str, float]]
) -> None:
    worker.is_mine = False

    worker.run(_ends(FinishReason.STOP, 7))

    assert worker.happened[3:] == [("forget", worker.request_id)]
    assert worker.stream.last_seq == 2
    assert counted() == {"fenced": 1, "first token": 1}


@pytest.mark.parametrize(("remaining_s", "wait_s"), [(5.0, 5.0), (-3.0, 0.0)])
def test_an_engine_is_waited_for_until_a_while_after_the_deadline(
    monkeypatch: pytest.MonkeyPatch, remaining_s: float, wait_s: float
) -> None:
    worker = _Worker(monkeypatch, remaining_s=remaining_s)

    worker.run()

    back = worker.given_back()
    assert worker.waits == [pytest.approx(wait_s + DEADLINE_GRACE_S, abs=1.0)]
    assert (back.reason, back.counts_as_failure) == ("engine_error", True)
    assert ("abort", worker.request_id) in worker.happened


@pytest.mark.parametrize(("fail_count", "delay_s"), [(0, 1.0), (1, 2.0), (2, 4.0)])
def test_each_failure_is_waited_for_twice_as_long(
    monkeypatch: pytest.MonkeyPatch,
    counted: Callable[[], dict[str, float]],
    fail_count: int,
    delay_s: float,
) -> None:
    worker = _Worker(monkeypatch, fail_count=fail_count, max_fails=fail_count + 2)
    error = EngineError("engine_error", "No.", retryable=True)

    worker.run(_ends(FinishReason.ERROR, error=error))

    back = worker.given_back()
    assert (back.delay_s, back.counts_as_failure) == (delay_s, True)
    assert counted() == {"error": 1}


@pytest.mark.parametrize(
    ("is_retryable", "fail_count"), [(True, 2), (True, 3), (False, 0), (False, 2)]
)
def test_the_last_failure_and_one_that_stays_end_the_job(
    monkeypatch: pytest.MonkeyPatch,
    counted: Callable[[], dict[str, float]],
    is_retryable: bool,
    fail_count: int,
) -> None:
    worker = _Worker(monkeypatch, fail_count=fail_count)
    error = EngineError("engine_error", "No.", retryable=is_retryable)

    worker.run(_ends(FinishReason.ERROR, error=error, cached_tokens=1))

    record = worker.finished()
    assert record.ending == replace(ENGINE_ERROR, is_retryable=is_retryable)
    assert (record.ending.payer, record.cached_tokens) == (Payer.PLATFORM, 0)
    assert (record.error_code, record.error_message) == ("engine_error", "No.")
    assert counted() == {"error": 1}


def test_a_request_that_is_refused_is_not_waited_for(worker: _Worker) -> None:
    def refuse(_stream: JobStream) -> None:
        raise EngineError("invalid_prompt", "No.", retryable=False)

    worker.run(refuse)

    assert worker.finished().error_code == "invalid_prompt"
    assert worker.waits == []


def test_a_fault_of_ours_is_tried_again_and_frees_the_engine(worker: _Worker) -> None:
    worker.run(lambda _stream: cast(None, 1 / 0))

    assert worker.given_back().counts_as_failure
    assert worker.happened[3:] == [("abort", worker.request_id), ("forget", worker.request_id)]


def _aborted(stream: JobStream) -> None:
    stream.add_output(output("a", 7))
    stream.add_output(TokenOutput(request_id="r", text="b", finish_reason=FinishReason.ABORT))
    stream.close()


def test_a_job_that_somebody_cancelled_ends_with_all_its_text(
    worker: _Worker, counted: Callable[[], dict[str, float]]
) -> None:
    worker.asked_by = "user"

    worker.run(_aborted)

    record = worker.finished()
    assert (record.ending, record.attempt_outcome) == (CANCELLED_BY_USER, "cancelled")
    assert record.output == [{"index": 0, "text": "ab", "finish_reason": None}]
    assert counted() == {"cancelled": 1, "first token": 1}


def test_a_job_that_nobody_cancelled_goes_back_at_once_without_a_failure(
    worker: _Worker, counted: Callable[[], dict[str, float]]
) -> None:
    worker.run(_aborted)

    back = worker.given_back()
    assert (back.reason, back.delay_s, back.counts_as_failure) == ("worker_drained", 0.0, False)
    assert (back.checkpoint.seq, back.checkpoint.text, back.attempt_tokens) == (2, "a", 1)
    assert worker.happened[3:] == [("forget", worker.request_id)]
    assert counted() == {"drained": 1, "first token": 1}
