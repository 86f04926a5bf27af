"""Where an attempt goes on, by what Redis and Postgres have of the ones before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import redis

from store.attempts import Checkpoint, Claimed
from tasks.events import Event, EventType, make_event, make_gap
from tasks.stream import SEQUENCE_JUMP, Code, Reply
from tasks.token_ids import pack_token_ids
from tests.unit.worker.test_job_stream import new_stream
from workers.inference.job_stream import JobStream
from workers.inference.resume import StreamTaken, open_stream


class _Log:
    """What Redis has of a stream; it is away if there is no reply."""

    def __init__(self, reply: Reply | None, events: Sequence[Event] = ()) -> None:
        self._reply = reply
        self._events = list(events)
        self.opened: list[tuple[Any, ...]] = []

    def open(self, *arguments: Any) -> Reply:
        self.opened.append(arguments)
        if self._reply is None:
            raise redis.ConnectionError
        return self._reply

    def read_log(self, _job_id: Any) -> list[Event]:
        assert self._events, "there is nothing to read"
        return self._events


STARTED = make_event(1, EventType.STARTED, attempt=1, model="stub")


def _token(seq: int, text: str, *, index: int = 0) -> Event:
    fields = {"index": index, "text": text, "token_ids": [seq], "logprobs": [[-0.5, []]]}
    return make_event(seq, EventType.TOKEN, **fields)


def _claimed(*, attempt: int = 2, text: str = "", seq: int = 0, num_choices: int = 1) -> Claimed:
    ids = pack_token_ids(range(2, 2 + len(text)))
    checkpoint = Checkpoint(seq=seq, token_ids=ids, text=text)
    claimed = new_stream(num_choices=num_choices, sampling={"logprobs": 0}).claimed
    return replace(claimed, attempt=attempt, checkpoint=checkpoint)


def _open(claimed: Claimed, log: _Log) -> JobStream:
    return open_stream(log, claimed)  # type: ignore[arg-type]


def _shown(stream: JobStream) -> tuple[int, list[str], list[list[int]]]:
    choices = stream.choices
    return stream.last_seq, [c.text for c in choices], [c.token_ids for c in choices]


@pytest.mark.parametrize("code", [Code.FENCED, Code.FINAL])
def test_a_stream_that_is_anothers_is_not_taken(code: Code) -> None:
    with pytest.raises(StreamTaken):
        _open(_claimed(), _Log(Reply(code, 9)))


def test_a_stream_is_opened_for_the_attempt_behind_its_checkpoint() -> None:
    claimed = _claimed(attempt=3, text="ab", seq=3)
    log = _Log(Reply(Code.LOG_LOST, 0))

    _open(claimed, log)

    assert log.opened == [(claimed.job_id, 3, 3)]


@pytest.mark.parametrize("reply", [Reply(Code.OK, 0), None])
def test_a_first_attempt_begins_at_the_beginning(reply: Reply | None) -> None:
    stream = _open(_claimed(attempt=1), _Log(reply))

    assert _shown(stream) == (0, [""], [[]])
    stream.add_started()
    append = stream.pending()
    assert append is not None
    assert ([event.seq for event in append.events], append.resets_log) == ([1], False)


def test_a_later_attempt_without_redis_goes_on_behind_all_that_may_have_been_said() -> None:
    stream = _open(_claimed(attempt=3, text="ab", seq=3), _Log(None))

    assert _shown(stream) == (3 * SEQUENCE_JUMP, ["ab"], [[2, 3]])
    append = stream.pending()
    assert append is not None
    assert append.resets_log
    assert append.events[0].fields()["text"] == "ab"


def test_a_whole_log_is_gone_on_with_where_it_ends() -> None:
    events = [STARTED, _token(2, "a"), _token(3, "b"), _token(4, "c")]

    stream = _open(_claimed(text="a", seq=2), _Log(Reply(Code.OK, 4), events))

    assert _shown(stream) == (4, ["abc"], [[2, 3, 4]])
    assert stream.choices[0].logprobs == [[-0.5, []]] * 3
    assert stream.attempt_tokens == 0
    assert stream.pending() is None


def test_choices_of_a_whole_log_go_on_each_with_its_own() -> None:
    events = [STARTED, _token(2, "a"), _token(3, "x", index=1), _token(4, "b")]

    stream = _open(_claimed(num_choices=2), _Log(Reply(Code.OK, 4), events))

    assert _shown(stream) == (4, ["ab", "x"], [[2, 4], [3]])


def test_a_log_that_begins_with_a_gap_is_whole() -> None:
    gap = make_gap(SEQUENCE_JUMP, ["ab"])
    events = [gap, _token(SEQUENCE_JUMP + 1, "c")]
    claimed = _claimed(text="ab", seq=SEQUENCE_JUMP)

    stream = _open(claimed, _Log(Reply(Code.OK, SEQUENCE_JUMP + 1), events))

    assert _shown(stream)[:2] == (SEQUENCE_JUMP + 1, ["abc"])


BEYOND = 2 * SEQUENCE_JUMP


@pytest.mark.parametrize(
    ("reply", "events", "text"),
    [
        # What the checkpoint lacks is in the log, but the log isn't what readers had.
        (Reply(Code.LOG_LOST, 4), [STARTED, *map(_token, (2, 3, 4), "abc")], "abc"),
        (Reply(Code.OK, 4), [_token(3, "b"), _token(4, "c")], "abc"),  # trimmed
        (Reply(Code.OK, 5), [STARTED, *map(_token, (2, 3, 4), "abc")], "abc"),  # its end is gone
        # One that comes after the checkpoint is missing: the others would make other text of it.
        (Reply(Code.OK, 4), [STARTED, _token(2, "a"), _token(4, "c")], "a"),
        (Reply(Code.OK, 4), [_token(4, "c")], "a"),
        (Reply(Code.OK, 5), [STARTED, _token(2, "a"), make_gap(3, ["ax"]), _token(4, "c")], "a"),
        # Whole for readers, but the tokens of what the gap restates are not to be had.
        (Reply(Code.OK, 6), [make_gap(5, ["ax"]), _token(6, "c")], "a"),
    ],
)
def test_a_log_that_is_not_whole_is_begun_anew_behind_a_gap(
    reply: Reply, events: list[Event], text: str
) -> None:
    stream = _open(_claimed(text="a", seq=2), _Log(reply, events))

    assert _shown(stream)[:2] == (BEYOND, [text])
    append = stream.pending()
    assert append is not None
    [gap] = append.events
    assert (append.resets_log, gap.type, gap.fields()["text"]) == (True, EventType.GAP, text)
    assert stream.attempt_tokens == 0
