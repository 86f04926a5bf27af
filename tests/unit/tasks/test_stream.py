"""What a writer asks Redis for, and what it makes of the answers."""

from __future__ import annotations

from typing import Any, cast

import pytest
import redis

from tasks import keys
from tasks.events import Event, EventType, make_event
from tasks.ids import uuid7
from tasks.stream import APPEND_SCRIPT, Append, Code, Reply, StreamWriter

JOB = uuid7()
NO_SCRIPT = redis.exceptions.NoScriptError()
WRONG_KEY = redis.ResponseError("WRONGTYPE")


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

    def execute(self, *, raise_on_error: bool) -> list[Any]:
        assert not raise_on_error
        return self.answers.pop(0)


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
    ("is_final", "resets_log", "ttl_ms"),
    [(False, True, keys.STREAM_RUNNING_TTL_MS), (True, False, keys.STREAM_FINAL_TTL_MS)],
)
def test_an_append_says_all_that_the_script_asks(
    is_final: bool, resets_log: bool, ttl_ms: int
) -> None:
    events = _events(7, 2)

    append = Append(JOB, 3, events, is_final=is_final, resets_log=resets_log)

    assert append.arguments() == (
        keys.stream_meta(JOB),
        keys.stream_log(JOB),
        3,
        7,
        is_final,
        resets_log,
        ttl_ms,
        keys.STREAM_MAX_ENTRIES,
        keys.stream_channel(JOB),
        events[0].payload,
        events[1].payload,
    )


def test_the_script_is_loaded_once() -> None:
    client = _Redis([[0, 1]], [[0, 2]])
    writer = _writer(client)
    appends = [Append(JOB, 1, _events(seq)) for seq in (1, 2)]

    replies = [writer.append([append]) for append in appends]

    assert replies == [[Reply(Code.OK, 1)], [Reply(Code.OK, 2)]]
    assert client.num_loads == 1
    assert client.sent == [[("sha 1", 2, *append.arguments())] for append in appends]


@pytest.mark.parametrize(
    "lost", [[NO_SCRIPT, NO_SCRIPT, NO_SCRIPT], [WRONG_KEY, NO_SCRIPT, [0, 5]]]
)
def test_a_script_that_redis_lost_is_loaded_again_and_all_is_repeated(lost: list[Any]) -> None:
    client = _Redis(lost, [[0, 1], WRONG_KEY, [-3, 4]])

    replies = _writer(client).append([Append(JOB, 1, _events(seq)) for seq in (1, 2, 5)])

    assert replies == [Reply(Code.OK, 1), Reply(Code.REFUSED, 0), Reply(Code.HOLE, 4)]
    assert [[sha for sha, *_ in pipeline] for pipeline in client.sent] == [
        ["sha 1"] * 3,
        ["sha 2"] * 3,
    ]


def test_when_all_is_refused_nothing_can_be_appended() -> None:
    client = _Redis([WRONG_KEY, redis.ResponseError("OOM")])

    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        _writer(client).append([Append(JOB, 1, _events(1)), Append(uuid7(), 1, _events(1))])

    assert len(client.sent) == 1
