"""What a writer asks Redis for, and what it makes of the answers."""

from __future__ import annotations

from typing import Any, cast

import pytest
import redis

from tasks import keys
from tasks.events import Event, EventType, make_event
from tasks.ids import uuid7
from tasks.stream import APPEND_SCRIPT, MAX_EVENTS_A_CALL, Append, Code, Reply, StreamWriter

JOB = uuid7()
NO_SCRIPT = redis.exceptions.NoScriptError()
WRONG_KEY = b"WRONGTYPE"


def _events(first: int, num: int = 1) -> list[Event]:
    return [make_event(seq, EventType.TOKEN, text="a") for seq in range(first, first + num)]


class _Redis:
    """Answers pipelines with what it is told to, one list a pipeline."""

    def __init__(self, *answers: list[Any]) -> None:
        self.answers = list(answers)
        self.num_loads = 0
        self.sent: list[list[tuple[Any, ...]]] = []

    def register_script(self, _script: str) -> None:
        """Of opening; not used here."""

    def script_load(self, script: str) -> str:
        assert script == APPEND_SCRIPT
        self.num_loads += 1
        return f"sha {self.num_loads}"

    def pipeline(self, **_: Any) -> _Redis:
        self.sent.append([])
        return self

    def evalsha(self, *arguments: Any) -> None:
        self.sent[-1].append(arguments)

    def execute(self) -> list[Any]:
        answers = self.answers.pop(0)
        if error := next((a for a in answers if isinstance(a, Exception)), None):
            raise error
        return answers


def _writer(client: _Redis) -> StreamWriter:
    return StreamWriter(cast(redis.Redis, client))


@pytest.mark.parametrize(
    ("first", "resets_log", "begins_log"),
    [(1, False, True), (2, False, False), (1, True, True), (2, True, True)],
)
def test_a_log_begins_with_its_first_event_or_anew(
    first: int, resets_log: bool, begins_log: bool
) -> None:
    assert Append(JOB, 1, _events(first), resets_log=resets_log).begins_log is begins_log


@pytest.mark.parametrize(
    ("is_final", "resets_log", "renews", "ttl_ms"),
    [
        (False, False, True, keys.STREAM_RUNNING_TTL_MS),
        (False, True, False, keys.STREAM_RUNNING_TTL_MS),
        (False, False, False, 0),
        (True, False, False, keys.STREAM_FINAL_TTL_MS),
    ],
)
def test_an_append_says_all_that_the_script_asks(
    is_final: bool, resets_log: bool, renews: bool, ttl_ms: int
) -> None:
    events = _events(7, 2)

    append = Append(JOB, 3, events, is_final=is_final, resets_log=resets_log, renews=renews)

    assert append.keys == (keys.stream_meta(JOB), keys.stream_log(JOB))
    assert append.arguments() == (
        f"3 7 2 {is_final:d} {resets_log:d} {ttl_ms}",
        events[0].payload,
        events[1].payload,
    )


def test_the_first_event_of_a_log_says_how_long_it_is_kept() -> None:
    append = Append(JOB, 1, _events(1), renews=False)

    assert append.arguments()[0] == f"1 1 1 0 0 {keys.STREAM_RUNNING_TTL_MS}"


def test_the_script_is_loaded_once_and_takes_all_jobs_at_once() -> None:
    client = _Redis([[[0, 1], [0, 7]]], [[[0, 2]]])
    writer = _writer(client)
    one, other, later = (
        Append(job_id, 1, _events(seq)) for job_id, seq in ((JOB, 1), (uuid7(), 7), (JOB, 2))
    )

    replies = [writer.append([one, other]), writer.append([later])]

    assert replies == [[Reply(Code.OK, 1), Reply(Code.OK, 7)], [Reply(Code.OK, 2)]]
    assert client.num_loads == 1
    most = keys.STREAM_MAX_ENTRIES
    assert client.sent == [
        [("sha 1", 4, *one.keys, *other.keys, most, *one.arguments(), *other.arguments())],
        [("sha 1", 2, *later.keys, most, *later.arguments())],
    ]


@pytest.mark.parametrize(
    ("nums_events", "jobs_a_call"),
    [
        ([1] * MAX_EVENTS_A_CALL, [MAX_EVENTS_A_CALL]),
        ([1] * (MAX_EVENTS_A_CALL + 1), [MAX_EVENTS_A_CALL, 1]),
        ([3 * MAX_EVENTS_A_CALL, 1, 1], [1, 2]),
        ([1, MAX_EVENTS_A_CALL, 1], [1, 1, 1]),
    ],
)
def test_one_call_appends_so_many_events_at_most(
    nums_events: list[int], jobs_a_call: list[int]
) -> None:
    client = _Redis([[[0, 9]] * num for num in jobs_a_call])

    replies = _writer(client).append([Append(uuid7(), 1, _events(5, n)) for n in nums_events])

    [pipeline] = client.sent
    assert [num_keys for _, num_keys, *_ in pipeline] == [2 * num for num in jobs_a_call]
    assert replies == [Reply(Code.OK, 9)] * len(nums_events)


def test_a_script_that_redis_lost_is_loaded_again_and_all_is_repeated() -> None:
    client = _Redis([[[0, 1]], NO_SCRIPT], [[[0, 1], [-4, WRONG_KEY], [-3, 4]]])

    replies = _writer(client).append([Append(JOB, 1, _events(seq)) for seq in (1, 2, 5)])

    assert replies == [Reply(Code.OK, 1), Reply(Code.REFUSED, 0), Reply(Code.HOLE, 4)]
    assert [[sha for sha, *_ in pipeline] for pipeline in client.sent] == [["sha 1"], ["sha 2"]]


def test_when_all_is_refused_nothing_can_be_appended() -> None:
    client = _Redis([[[-4, WRONG_KEY], [-4, b"OOM"]]])

    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        _writer(client).append([Append(JOB, 1, _events(1)), Append(uuid7(), 1, _events(1))])

    assert len(client.sent) == 1
