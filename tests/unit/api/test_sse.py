"""One response of server-sent events: what it writes, what wakes it, and each of its ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from psycopg import OperationalError

from api.json_pieces import LaterList, ListPart, Piece
from api.long_work import SHORT_CHARS
from api.settings import HEARTBEAT_S, SEND_TIMEOUT_S
from api.streams.channel import Listener
from api.streams.open_streams import MIN_POSITION_INTERVAL_S, OpenStreams
from api.streams.sse import EVENTS_A_TURN, FIRST_POSITION_S, EventStreamResponse
from tasks.errors import ServiceUnavailable
from tasks.events import Event, EventType, make_event

MAX_AGE_S = 100.0
SCOPE = {"type": "http", "method": "GET"}


class _Hub:
    def __init__(self) -> None:
        self.joined: list[tuple[UUID, Listener]] = []
        self.left: list[tuple[UUID, Listener]] = []

    async def join(self, job_id: UUID, listener: Listener) -> str:
        self.joined.append((job_id, listener))
        listener.wake()  # the head is not written: nothing may follow yet
        for _ in range(5):
            await asyncio.sleep(0)
        return "channel"

    def leave(self, job_id: UUID, listener: Listener) -> None:
        self.left.append((job_id, listener))


class _LongWork:
    def __init__(self) -> None:
        self.num_turns = 0
        self.ran: list[int] = []

    async def turn(self) -> None:
        self.num_turns += 1

    async def run(self, function: Callable[..., Any], events: Sequence[Event], row: Any) -> Any:
        self.ran.append(len(events))
        return function(events, row)


class _Reader:
    """Gives what it was told to, a list a time."""

    def __init__(self) -> None:
        self.job_id, self.tenant_id = uuid4(), uuid4()
        self.is_crowded = False
        self.long_work = _LongWork()
        self.attached: list[Any] = []
        self.batches: list[list[Event]] = []
        self.notes: list[str] = []
        self.num_asked = 0
        self.is_done = False
        self.is_waiting = False
        self.is_due = False
        self.finished: dict[str, Any] | None = None
        self.error: Exception | None = None

    def attach(self, channel: Any, now: float) -> None:
        self.attached.append((channel, now))

    async def next(self) -> Sequence[Event]:
        self.num_asked += 1
        if self.error:
            raise self.error
        events = self.batches.pop(0) if self.batches else []
        self.is_done = any(event.type == EventType.DONE for event in events)
        return events

    def tick(self, _now: float) -> bool:
        return self.is_due

    def note_log_may_have_more(self) -> None:
        self.notes.append("log")

    def note_reconnect(self, _now: float) -> None:
        self.notes.append("reconnect")

    def note_position_is_due(self) -> None:
        self.notes.append("position")

    async def read_list(self, later: LaterList) -> AsyncIterator[bytes]:
        yield b"[%d" % later.parts[0].choice
        yield b"]"


class _Encoder:
    def __init__(self) -> None:
        self.shows_position = True
        self.is_broken = False
        self.opening = b""
        self.calls: list[tuple[list[int], Any]] = []
        self.pieces: list[Piece] | None = None

    def begin(self) -> bytes:
        return self.opening

    def encode(self, events: Sequence[Event], finished: Any) -> list[Piece]:
        self.calls.append(([event.seq for event in events], finished))
        return [b"<%d>" % event.seq for event in events] if self.pieces is None else self.pieces


class _Client:
    """A response and what its client got."""

    def __init__(self) -> None:
        self.hub, self.reader, self.encoder = _Hub(), _Reader(), _Encoder()
        self.streams = OpenStreams(2)
        self.messages: list[dict[str, Any]] = []
        self.num_left = 0
        self.leaves = asyncio.Event()
        self.may_send = asyncio.Event()
        self.may_send.set()
        self.error: Exception | None = None
        self.response = EventStreamResponse(
            hub=cast(Any, self.hub),
            streams=self.streams,
            reader=cast(Any, self.reader),
            encoder=self.encoder,
            max_age_s=MAX_AGE_S,
            headers={"X-Job": "7"},
            on_left=self._note_left,
        )
        self.task: asyncio.Task[None] | None = None

    def _note_left(self) -> None:
        self.num_left += 1

    async def receive(self) -> dict[str, Any]:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.may_send.wait()
        if self.error:
            raise self.error
        self.messages.append(message)

    async def opens(self) -> None:
        self.task = asyncio.create_task(self.response(SCOPE, self.receive, self.send))
        await self.settles()

    async def settles(self) -> None:
        """Whatever can go on by itself has."""
        for _ in range(50):
            await asyncio.sleep(0)

    async def closes(self) -> None:
        assert self.task is not None
        await asyncio.wait_for(self.task, 5)
        assert self.hub.left == [(self.reader.job_id, self.response)]
        assert self.streams._streams == set()
        assert self.task.cancelling() == 0  # whoever serves the request is not to end with it

    @property
    def bodies(self) -> list[bytes]:
        return [m["body"] for m in self.messages if m["type"] == "http.response.body"]

    @property
    def has_end(self) -> bool:
        return any(message.get("more_body") is False for message in self.messages)


@pytest.fixture
async def client() -> AsyncIterator[_Client]:
    client = _Client()
    yield client
    if client.task:
        client.task.cancel()
        with suppress(asyncio.CancelledError):
            await client.task


def _token(seq: int) -> Event:
    return make_event(seq, EventType.TOKEN, index=0, text="x", token_ids=[seq])


def _done(seq: int) -> Event:
    return make_event(seq, EventType.DONE)


async def test_a_stream_from_its_head_to_its_end(client: _Client) -> None:
    client.encoder.opening = b"hello"
    client.reader.batches = [[_token(1), _token(2)], [_done(3)], [_token(4)]]
    began = time.monotonic()

    await client.opens()
    await client.closes()

    start, *bodies = client.messages
    headers = start.pop("headers")
    assert start == {"type": "http.response.start", "status": 200}
    assert sorted(headers) == [
        (b"cache-control", b"no-cache, no-store, no-transform"),
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"x-accel-buffering", b"no"),
        (b"x-job", b"7"),
    ]
    assert bodies == [
        {"type": "http.response.body", "body": body, "more_body": more}
        for body, more in [(b"hello", True), (b"<1><2>", True), (b"<3>", True), (b"", False)]
    ]
    assert client.hub.joined == [(client.reader.job_id, client.response)]
    [(channel, now)] = client.reader.attached
    assert channel == "channel"
    assert began <= now <= time.monotonic()
    assert client.num_left == 0


async def test_who_asks_for_the_head_alone_opens_no_stream(client: _Client) -> None:
    await client.response(SCOPE | {"method": "HEAD"}, client.receive, client.send)

    start, end = client.messages
    assert (start["status"], end["body"], end["more_body"]) == (200, b"", False)
    assert (b"content-type", b"text/event-stream; charset=utf-8") in start["headers"]
    assert client.hub.joined == []


async def test_nothing_to_say_is_nothing_written(client: _Client) -> None:
    await client.opens()

    assert [message["type"] for message in client.messages] == ["http.response.start"]
    assert client.reader.num_asked == 1


async def test_what_wakes_a_stream(client: _Client) -> None:
    await client.opens()

    for number, wake in enumerate(
        (client.response.wake, client.response.wake_for_log, client.response.wake_after_reconnect),
        start=1,
    ):
        client.reader.batches = [[_token(number)]]
        wake()
        await client.settles()

    assert client.bodies == [b"<1>", b"<2>", b"<3>"]
    assert client.reader.notes == ["log", "reconnect"]


async def test_news_that_come_while_others_are_sent_are_sent_too(client: _Client) -> None:
    await client.opens()
    client.reader.batches = [[_token(1)], []]
    client.may_send.clear()
    client.response.wake()
    await client.settles()

    asked = client.reader.num_asked
    client.response.wake()
    client.response.wake()
    await client.settles()
    asked_meanwhile = client.reader.num_asked - asked
    client.reader.batches = [[], [_token(2)]]
    client.may_send.set()
    await client.settles()

    assert client.bodies == [b"<1>", b"<2>"]
    assert asked_meanwhile == 0  # one sender at a time


async def test_what_is_being_sent_when_the_client_leaves_is_given_up(client: _Client) -> None:
    await client.opens()
    client.may_send.clear()
    client.reader.batches = [[_token(1)]]
    client.response.wake()
    await client.settles()

    client.leaves.set()
    await client.closes()
    client.may_send.set()
    await client.settles()

    assert client.bodies == []


async def test_a_stream_without_headers_of_its_own_that_nobody_waits_for(client: _Client) -> None:
    client.response = EventStreamResponse(
        hub=cast(Any, client.hub),
        streams=client.streams,
        reader=cast(Any, client.reader),
        encoder=client.encoder,
        max_age_s=MAX_AGE_S,
    )
    await client.opens()

    client.leaves.set()
    await client.closes()

    assert len(client.messages[0]["headers"]) == 3


async def test_a_stream_that_is_woken_again_waits_for_its_turn_once(client: _Client) -> None:
    await client.opens()
    turns: list[Callable[[], None]] = []
    starts = SimpleNamespace(begin=lambda _tenant, start: turns.append(start))
    client.streams.starts = cast(Any, starts)

    for _ in range(3):
        client.response.wake()
    [start] = turns
    start()
    await client.settles()
    client.response.wake()

    assert len(turns) == 2
    assert client.reader.num_asked == 2


async def test_a_client_that_leaves_is_noticed(client: _Client) -> None:
    await client.opens()

    client.leaves.set()
    await client.closes()
    client.reader.batches = [[_token(1)]]
    client.response.wake()
    await client.settles()

    assert client.num_left == 1
    assert client.bodies == []


async def test_an_end_from_outside_is_an_orderly_one(client: _Client) -> None:
    await client.opens()
    client.reader.batches = [[_token(1)]]

    client.response.end("shutdown")
    await client.closes()

    assert (client.bodies, client.has_end, client.num_left) == ([b""], True, 0)


async def test_a_stream_that_can_not_go_on_ends(client: _Client) -> None:
    client.encoder.is_broken = True
    client.reader.batches = [[_token(1)], [_token(2)]]

    await client.opens()
    await client.closes()

    assert (client.bodies, client.has_end, client.num_left) == ([b"<1>", b""], True, 0)


@pytest.mark.parametrize("error", [OperationalError(), ServiceUnavailable(), ZeroDivisionError()])
async def test_a_fault_cuts_the_stream(client: _Client, error: Exception) -> None:
    await client.opens()
    client.reader.error = error

    client.response.wake()
    await client.closes()

    assert (client.has_end, client.num_left) == (False, 0)


async def test_a_connection_that_breaks_is_a_client_that_left(client: _Client) -> None:
    await client.opens()
    client.error = ConnectionResetError()
    client.reader.batches = [[_token(1)]]
    client.response.wake()
    await client.settles()
    assert client.task is not None
    assert not client.task.done()  # the server says so

    client.leaves.set()
    await client.closes()

    assert client.num_left == 1


async def test_a_client_that_stops_reading_is_given_up(client: _Client) -> None:
    await client.opens()
    client.may_send.clear()
    client.reader.batches = [[_token(1)]]
    client.response.wake()
    await client.settles()
    now = time.monotonic()

    client.response.tick(now + SEND_TIMEOUT_S - 1)
    await client.settles()
    assert client.task is not None
    assert not client.task.done()
    client.response.tick(now + SEND_TIMEOUT_S)
    await client.closes()

    assert client.num_left == 1


async def test_a_stream_that_waits_for_news_is_not_given_up(client: _Client) -> None:
    client.reader.batches = [[_token(1)]]
    await client.opens()

    client.response.tick(time.monotonic() + SEND_TIMEOUT_S + 1)
    await client.settles()

    assert client.task is not None
    assert not client.task.done()


async def test_a_stream_has_a_greatest_age(client: _Client) -> None:
    await client.opens()
    now = time.monotonic()

    client.response.tick(now + MAX_AGE_S - 1)
    await client.settles()
    assert not client.has_end
    client.response.tick(now + MAX_AGE_S)
    await client.closes()

    assert (client.has_end, client.num_left) == (True, 0)


async def test_a_silent_stream_has_a_heartbeat(client: _Client) -> None:
    await client.opens()
    now = time.monotonic()

    client.response.tick(now + HEARTBEAT_S - 1)
    await client.settles()
    early = client.reader.num_asked
    client.response._sent_at -= HEARTBEAT_S
    client.response.tick(time.monotonic())
    await client.settles()
    client.response.tick(time.monotonic())
    await client.settles()

    assert early == 1
    assert client.bodies == [b":\n"]


async def test_a_stream_that_speaks_needs_no_heartbeat(client: _Client) -> None:
    await client.opens()
    client.response._sent_at -= HEARTBEAT_S
    client.reader.batches = [[_token(1)]]

    client.response.wake()
    await client.settles()

    assert client.bodies == [b"<1>"]


async def test_a_reader_that_wants_to_look_is_let(client: _Client) -> None:
    await client.opens()

    client.response.tick(time.monotonic())
    await client.settles()
    before = client.reader.num_asked
    client.reader.is_due = True
    client.response.tick(time.monotonic())
    await client.settles()

    assert (before, client.reader.num_asked) == (1, 2)


@pytest.mark.parametrize(("waits_long", "notes"), [(True, ["position"]), (False, [])])
async def test_the_place_in_the_queue_is_first_looked_up_once_a_job_has_waited(
    client: _Client, waits_long: bool, notes: list[str]
) -> None:
    client.reader.is_waiting = True
    await client.opens()
    at_first, timer = list(client.reader.notes), client.response._first_position
    now = asyncio.get_running_loop().time()

    client.reader.is_waiting = waits_long
    client.response._look_for_position()
    await client.settles()

    assert timer is not None
    assert now < timer.when() <= now + FIRST_POSITION_S
    assert (at_first, client.reader.notes) == ([], notes)
    assert client.reader.num_asked == 1 + len(notes)
    client.leaves.set()
    await client.closes()
    assert timer.cancelled()


@pytest.mark.parametrize(("shows_position", "is_waiting"), [(False, True), (True, False)])
async def test_no_place_is_looked_up_that_nobody_is_told(
    client: _Client, shows_position: bool, is_waiting: bool
) -> None:
    client.encoder.shows_position, client.reader.is_waiting = shows_position, is_waiting

    await client.opens()
    client.response.tick(time.monotonic() + MIN_POSITION_INTERVAL_S)

    assert client.response._first_position is None
    assert client.reader.notes == []


async def test_the_place_in_the_queue_is_looked_up_now_and_then(client: _Client) -> None:
    await client.opens()
    now = time.monotonic() + MIN_POSITION_INTERVAL_S
    client.response.tick(now)  # it doesn't wait
    client.reader.is_waiting = True

    for moment in (now - MIN_POSITION_INTERVAL_S - 1, now, now + 1, now + MIN_POSITION_INTERVAL_S):
        client.response.tick(moment)
        await client.settles()

    assert client.reader.notes == ["position"] * 2
    assert client.reader.num_asked == 3


@pytest.mark.parametrize(
    ("num_events", "is_finished", "num_turns"),
    [
        (EVENTS_A_TURN, False, 0),
        (EVENTS_A_TURN + 1, False, 2),
        (2 * EVENTS_A_TURN, False, 2),
        (1, True, 1),
    ],
)
async def test_what_is_caught_up_with_is_sent_in_turns(
    client: _Client, num_events: int, is_finished: bool, num_turns: int
) -> None:
    await client.opens()
    client.reader.batches = [[_token(seq) for seq in range(1, num_events + 1)]]
    client.reader.finished = {"output": []} if is_finished else None

    client.response.wake()
    await client.settles()

    numbers = [number for numbers, _ in client.encoder.calls for number in numbers]
    assert numbers == list(range(1, num_events + 1))
    assert client.reader.long_work.num_turns == num_turns
    assert len(client.bodies) == max(1, num_turns)
    assert client.reader.long_work.ran == []
    assert {type(row) for _, row in client.encoder.calls} == {dict if is_finished else type(None)}


async def test_what_a_crowd_follows_is_sent_in_turns(client: _Client) -> None:
    await client.opens()
    client.reader.is_crowded = True
    client.reader.batches = [[_token(1)]]

    client.response.wake()
    await client.settles()

    assert (client.bodies, client.reader.long_work.num_turns) == ([b"<1>"], 1)


@pytest.mark.parametrize(("num_chars", "ran"), [(SHORT_CHARS, []), (SHORT_CHARS + 1, [1])])
async def test_a_long_result_is_encoded_where_it_holds_up_nobody(
    client: _Client, num_chars: int, ran: list[int]
) -> None:
    await client.opens()
    client.reader.finished = {"output": [{"index": 0, "text": "x" * num_chars}]}
    client.reader.batches = [[_done(1)]]

    client.response.wake()
    await client.closes()

    assert client.reader.long_work.ran == ran
    assert client.bodies == [b"<1>", b""]


async def test_lists_are_read_where_they_stand(client: _Client) -> None:
    await client.opens()
    later = LaterList((ListPart(4, lambda: lambda *_: []),))
    client.encoder.pieces = [b"a", b"b", later, b"c", later]
    client.reader.batches = [[_token(1)]]

    client.response.wake()
    await client.settles()

    assert client.bodies == [b"ab", b"[4", b"]", b"c", b"[4", b"]"]


async def test_a_stream_that_there_is_no_room_for_is_refused(client: _Client) -> None:
    client.streams.end_all()

    with pytest.raises(ServiceUnavailable):
        await client.response(SCOPE, client.receive, client.send)

    assert client.hub.joined == []


async def test_a_request_that_is_cancelled_from_outside_stays_cancelled(client: _Client) -> None:
    await client.opens()
    assert client.task is not None

    client.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client.task

    assert client.hub.left


async def test_a_stream_waits_for_its_turn_once_and_not_after_its_end(client: _Client) -> None:
    await client.opens()
    client.streams.starts.begin(client.reader.tenant_id, lambda: None)  # another of the tenant's

    client.response.wake()
    client.response.wake()
    await client.settles()
    asked_once = client.reader.num_asked
    client.streams.starts.begin(client.reader.tenant_id, lambda: None)
    client.response.wake()
    client.response._close()
    await client.settles()

    assert (asked_once, client.reader.num_asked) == (2, 2)
    client.hub.left.clear()


async def test_the_first_end_of_a_stream_stands(client: _Client) -> None:
    """A client that didn't read left, though the process stops meanwhile."""
    await client.opens()
    client.may_send.clear()
    client.reader.batches = [[_token(1)]]
    client.response.wake()
    await client.settles()

    client.response.tick(time.monotonic() + SEND_TIMEOUT_S)
    client.response.end("shutdown")
    await client.closes()

    assert client.num_left == 1


async def test_limits_are_over_behind_their_moment_and_what_is_due_at_it(client: _Client) -> None:
    await client.opens()
    response, moment = client.response, time.monotonic() + 50
    response._sending_since, response._expires_at = moment - SEND_TIMEOUT_S, moment
    response._sent_at = moment

    response.tick(moment)
    await client.settles()
    assert client.task is not None
    assert not client.task.done()
    client.reader.is_waiting, response._position_at = True, moment
    response.tick(moment)

    assert client.reader.notes == ["position"]


async def test_what_else_a_client_sends_is_no_farewell(client: _Client) -> None:
    messages = ["http.request", "http.request"]

    async def receive() -> dict[str, Any]:
        return {"type": messages.pop()} if messages else await client.receive()

    client.task = asyncio.create_task(client.response(SCOPE, receive, client.send))
    await client.settles()

    assert messages == []
    assert not client.task.done()
    client.leaves.set()
    await client.closes()
