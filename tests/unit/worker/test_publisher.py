"""What the publisher sends, when it tries again, and when it lets a handler go on."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest
import redis
from structlog.testing import capture_logs

from tasks.events import Event, EventType, make_event
from tasks.stream import Append, Code, Reply
from tests.unit.worker.test_job_stream import new_stream, output, stop
from workers.inference import publisher as publishing
from workers.inference.engine.protocol import FinishReason
from workers.inference.job_stream import JobStream
from workers.inference.publisher import LINGER_S, RETRY_INTERVAL_S, Publisher


class _Writer:
    """Takes appends, and answers what it is told to; at first that all is well."""

    def __init__(self) -> None:
        self.sent: list[list[Append]] = []
        self.codes: list[Code] = []
        self.is_away = False
        self.refused: set[UUID] = set()

    def append(self, appends: Sequence[Append]) -> list[Reply]:
        self.sent.append(list(appends))
        if self.is_away:
            raise redis.ConnectionError
        codes = self.codes or [
            Code.REFUSED if append.job_id in self.refused else Code.OK for append in appends
        ]
        return [
            Reply(code, append.events[-1].seq) for code, append in zip(codes, appends, strict=True)
        ]

    @property
    def numbers(self) -> list[list[int]]:
        """Of the events of each append."""
        return [[event.seq for event in append.events] for sent in self.sent for append in sent]


class _Publisher(Publisher):
    """One whose thread is the test's: `turn` does what there is to do."""

    def __init__(self) -> None:
        super().__init__(redis.Redis.from_url("redis://127.0.0.1:1/0"))
        self.writer = _Writer()
        self._writer = self.writer  # type: ignore[assignment]
        self.trusted_until = time.monotonic() + 60

    def turn(self, *outputs: Any) -> None:
        """As one turn of its loop."""
        self.on_step(outputs)
        assert self._turn()

    def last_turn(self) -> None:
        self._inbox.put(None)
        assert not self._turn()

    @property
    def num_waiting(self) -> int:
        """Streams of which something is to be sent."""
        return len(self._dirty)


class _Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(publishing, "time", clock)
    return clock


@pytest.fixture
def publisher() -> _Publisher:
    return _Publisher()


def _started(publisher: Publisher, request_id: str = "r", **fields: Any) -> JobStream:
    stream = new_stream(**fields)
    stream.add_started()
    publisher.register(request_id, stream)
    publisher.flush(stream)
    return stream


def _of(request_id: str, text: str, *ids: int, **fields: Any) -> Any:
    made = output(text, *ids, **fields)
    return type(made)(
        request_id=request_id,
        token_ids=made.token_ids,
        text=made.text,
        index=made.index,
        finish_reason=made.finish_reason,
    )


def test_each_step_sends_what_is_new_and_the_end_lets_the_handler_go_on(
    publisher: _Publisher,
) -> None:
    stream = _started(publisher)

    publisher.turn(_of("r", "a", 1), _of("nobody", "b", 2))
    publisher.turn()
    before = stream.finished.is_set()
    publisher.turn(stop(0))

    assert publisher.writer.numbers == [[1, 2], [3]]
    assert (before, stream.finished.is_set()) == (False, True)
    assert stream.choices[0].text == "a"
    assert publisher.num_waiting == 0


def test_a_job_is_over_with_the_last_of_its_choices(publisher: _Publisher) -> None:
    stream = _started(publisher, num_choices=2)

    publisher.turn(stop(0))
    before = stream.finished.is_set()
    publisher.turn(stop(1))

    assert (before, stream.finished.is_set()) == (False, True)


def test_each_job_hears_its_own_answer(publisher: _Publisher) -> None:
    good, fenced = _started(publisher, "good"), _started(publisher, "fenced")
    publisher.writer.codes = [Code.OK, Code.FENCED]

    publisher.turn()
    publisher.writer.codes = []
    publisher.turn(_of("good", "a", 1), _of("fenced", "b", 2))

    assert (good.is_fenced, fenced.is_fenced) == (False, True)
    assert publisher.writer.numbers == [[1], [1], [2]]
    assert fenced.choices[0].text == ""  # nothing of it counts any more


def test_events_wait_while_redis_is_away_and_no_handler_waits_for_them(
    publisher: _Publisher, clock: _Clock
) -> None:
    stream = _started(publisher)
    publisher.writer.is_away = True

    with capture_logs() as logs:
        publisher.turn(_of("r", "a", 1), stop(0))
    is_over = stream.finished.is_set()
    publisher.writer.is_away = False
    clock.now += RETRY_INTERVAL_S - 0.01
    publisher.turn()
    early = len(publisher.writer.sent)
    clock.now += 0.01
    publisher.turn()

    assert is_over
    assert [entry["event"] for entry in logs] == ["publish_unavailable"]
    assert early == 1
    assert publisher.writer.numbers == [[1, 2, 3]] * 2


def test_a_stream_that_redis_refuses_holds_up_no_other_and_is_tried_again(
    publisher: _Publisher, clock: _Clock
) -> None:
    refused, other = _started(publisher), _started(publisher, "other")
    publisher.writer.refused = {refused.job_id}

    publisher.turn(_of("other", "a", 1))
    publisher.turn(_of("other", "b", 2), _of("r", "x", 3))
    meanwhile, is_heard = list(publisher.writer.numbers), other.pending() is None
    publisher.writer.refused = set()
    clock.now += RETRY_INTERVAL_S
    publisher.turn()

    assert meanwhile == [[1], [1, 2], [3]]
    assert is_heard
    assert publisher.writer.numbers[3:] == [[1, 2]]
    assert refused.pending() is None
    assert not publisher._refused


def test_a_log_with_a_hole_is_begun_anew_at_the_next_turn(
    publisher: _Publisher, clock: _Clock
) -> None:
    stream = _started(publisher)
    publisher.trusted_until = clock.now + 60
    publisher.turn(_of("r", "a", 1))
    publisher.writer.codes = [Code.HOLE]

    publisher.turn(_of("r", "b", 2))
    publisher.writer.codes = []
    publisher.turn()

    assert publisher.writer.numbers == [[1, 2], [3], [1, 2, 3]]
    assert publisher.writer.sent[-1][0].resets_log
    assert stream.pending() is None


def test_the_last_turn_sends_what_is_left_though_redis_was_away(publisher: _Publisher) -> None:
    stream = _started(publisher)
    publisher.writer.is_away = True
    publisher.turn()
    publisher.writer.is_away = False

    publisher.on_step([_of("r", "a", 1), stop(0)])
    publisher.last_turn()

    assert publisher.writer.numbers == [[1], [1, 2, 3]]
    assert stream.finished.is_set()


def test_a_log_is_begun_only_under_a_lease_that_surely_holds(
    publisher: _Publisher, clock: _Clock
) -> None:
    history: list[Event] = [make_event(1, EventType.STARTED, attempt=1)]
    begins, goes_on = _started(publisher), new_stream(*history)
    publisher.register("on", goes_on)
    publisher.trusted_until = clock.now

    publisher.turn(_of("on", "a", 1))
    untrusted = list(publisher.writer.numbers)
    publisher.trusted_until = clock.now + 0.01
    publisher.turn()

    assert untrusted == [[2]]
    assert publisher.writer.numbers == [[2], [1]]
    assert begins.pending() is None


def test_before_the_first_beat_no_log_is_begun(publisher: _Publisher) -> None:
    publisher.trusted_until = Publisher(redis.Redis()).trusted_until
    _started(publisher)

    publisher.turn()

    assert publisher.writer.sent == []
    assert publisher.num_waiting == 1


@pytest.mark.parametrize(
    ("is_finished", "waited_s", "num_tries"),
    [(True, LINGER_S, 1), (True, LINGER_S - 1, 2), (False, LINGER_S, 2)],
)
def test_events_of_a_finished_job_are_given_up_in_the_end(
    publisher: _Publisher, clock: _Clock, is_finished: bool, waited_s: float, num_tries: int
) -> None:
    publisher.writer.is_away = True
    publisher.trusted_until = clock.now + 2 * LINGER_S
    stream = _started(publisher)
    publisher.turn()
    if is_finished:
        stream.close()

    clock.now += waited_s
    publisher.turn()

    assert len(publisher.writer.sent) == num_tries
    assert publisher.num_waiting == num_tries - 1


def test_the_thread_sleeps_until_there_is_something_to_send_or_to_send_again(
    publisher: _Publisher, clock: _Clock
) -> None:
    waits: list[float | None] = []

    class _Inbox(queue.SimpleQueue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            waits.append(timeout)
            return super().get(block, timeout)

    publisher._inbox = _Inbox()
    publisher.trusted_until = clock.now + 60
    _started(publisher)
    publisher.writer.is_away = True

    publisher.turn()
    publisher.writer.is_away = False
    clock.now += RETRY_INTERVAL_S
    publisher.turn()
    publisher.turn()

    assert waits == [None, RETRY_INTERVAL_S, None]


def test_an_output_that_can_not_be_understood_ends_its_job_and_loses_nothing_of_others(
    publisher: _Publisher,
) -> None:
    bad, good = _started(publisher, "bad"), _started(publisher, "good")

    with capture_logs():  # tracebacks take long to print
        publisher.turn(_of("bad", "a", 1, index=7), _of("good", "b", 2))
    publisher.turn(_of("bad", "late", 3), _of("good", "c", 3, reason=FinishReason.STOP))

    assert bad.finished.is_set()
    assert bad.terminal is not None
    assert bad.terminal.error is not None
    assert (bad.terminal.finish_reason, bad.terminal.error.retryable) == ("error", True)
    assert bad.choices[0].text == ""
    assert good.finished.is_set()
    assert good.choices[0].text == "bc"
    assert publisher.writer.numbers == [[1], [1, 2], [3]]


def test_a_fault_in_sending_lets_handlers_go_on(
    publisher: _Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = _started(publisher)
    monkeypatch.setattr(publisher, "_publish", lambda: 1 / 0)

    publisher.on_step([stop(0)])
    publisher.last_turn()

    assert stream.finished.is_set()


def test_jobs_are_listed_until_they_are_forgotten(publisher: _Publisher) -> None:
    one, two = _started(publisher, "one"), _started(publisher, "two")

    publisher.forget("one")
    publisher.forget("one")

    assert publisher.running() == [two]
    publisher.turn()
    assert one.pending() is None  # its events are on their way all the same


def test_the_thread_works_until_it_is_stopped(publisher: _Publisher) -> None:
    stream = _started(publisher)
    publisher.start()
    publisher.on_step([_of("r", "a", 1), stop(0)])

    assert stream.finished.wait(5)
    publisher.stop()

    assert not publisher._thread.is_alive()
    assert [n for numbers in publisher.writer.numbers for n in numbers] == [1, 2, 3]


def test_a_turn_that_fails_is_not_the_threads_last(
    publisher: _Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[bool | RuntimeError] = [RuntimeError("x"), True, False, True]

    def turn() -> bool:
        found = turns.pop(0)
        if isinstance(found, RuntimeError):
            raise found
        return found

    monkeypatch.setattr(publisher, "_turn", turn)

    with capture_logs() as logs:
        publisher._run()

    assert turns == [True]
    assert [entry["event"] for entry in logs] == ["outputs_lost"]
