"""What becomes of the connection that all streams share."""

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
from structlog.testing import capture_logs

from api.streams import hub as hubs
from api.streams.channel import SILENT_S
from api.streams.hub import MAX_BACKOFF_S, PING_AFTER_S, SUBSCRIBE_CHUNK, StreamHub
from api.streams.subscription import Message, Subscription
from store.pools import AsyncPool
from tasks.events import EventType, make_event
from tasks.keys import stream_channel
from tests.support.listeners import Listener


class _SlowSubscription:
    """Takes its time with a subscription."""

    def __init__(self) -> None:
        self.is_read = asyncio.Event()
        self.is_asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.subscribed: list[str] = []
        self.num_cancelled = 0

    async def connect(self) -> None:
        return None

    async def subscribe(self, *names: str) -> None:
        self.is_asked.set()
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        self.subscribed += names

    async def read(self, _timeout_s: float) -> list[Message]:
        self.is_read.set()
        await asyncio.Event().wait()
        return []

    async def close(self) -> None:
        return None


async def test_a_listener_that_leaves_halfway_breaks_nobodys_connection_and_is_forgotten() -> None:
    subscription, job_id = _SlowSubscription(), uuid4()
    hub = _hub_with(lambda: subscription)
    await hub.start()
    await subscription.is_read.wait()

    async def watch() -> None:
        async with hub.watch(job_id):
            raise AssertionError("it was cancelled before")

    leaving = asyncio.create_task(watch())
    await subscription.is_asked.wait()
    leaving.cancel()
    with suppress(asyncio.CancelledError):
        await leaving
    subscription.may_answer.set()
    other = await hub.join(uuid4(), Listener())
    await hub.stop()

    assert subscription.num_cancelled == 0
    assert subscription.subscribed == [stream_channel(job_id), other.name]
    assert not hub.has_listeners(job_id)


class _Subscription:
    """One connection: says what it is given, None for a silence."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Message | Exception | None] = asyncio.Queue()
        self.commands: list[tuple[str, ...]] = []
        self.is_closed = False
        self.is_away = False

    async def connect(self) -> None:
        self.commands.append(("connect",))
        if self.is_away:
            raise ConnectionError

    async def subscribe(self, *names: str) -> None:
        self.commands.append(("subscribe", *names))

    async def unsubscribe(self, *names: str) -> None:
        self.commands.append(("unsubscribe", *names))

    async def ping(self) -> None:
        self.commands.append(("ping",))

    async def read(self, timeout_s: float) -> list[Message]:
        assert timeout_s == PING_AFTER_S
        message = await self.messages.get()
        if isinstance(message, Exception):
            raise message
        return [] if message is None else [message]

    async def close(self) -> None:
        self.is_closed = True

    def say(self, kind: str, name: str = "", data: bytes = b"") -> None:
        self.messages.put_nowait(Message(kind.encode(), name.encode(), data))


class _Connections:
    """A Redis that gives a new connection each time."""

    def __init__(self) -> None:
        self.made: list[_Subscription] = []

    def __call__(self) -> _Subscription:
        self.made.append(_Subscription())
        return self.made[-1]


def _hub_with(connections: Callable[[], object]) -> StreamHub:
    return StreamHub(cast(AsyncPool, None), cast(Callable[[], Subscription], connections))


async def _settle() -> None:
    """Whatever can go on by itself has."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
async def hub() -> AsyncIterator[tuple[StreamHub, _Connections]]:
    connections = _Connections()
    hub = _hub_with(connections)
    await hub.start()
    await _settle()
    yield hub, connections
    await hub.stop()
    assert all(connection.is_closed for connection in connections.made)


Hub = tuple[StreamHub, _Connections]


async def test_a_job_is_subscribed_to_once_however_many_listen(hub: Hub) -> None:
    streams, connections = hub
    job_id, one, two = uuid4(), Listener(), Listener()

    first = await streams.join(job_id, one)
    second = await streams.join(job_id, two)
    [connection] = connections.made
    before = streams.is_subscribed(job_id)
    connection.say("subscribe", first.name)
    await _settle()

    assert first is second
    assert connection.commands == [("connect",), ("subscribe", first.name)]
    assert (before, streams.is_subscribed(job_id)) == (False, True)
    assert one.heard == two.heard == ["reconnect"]
    assert streams.num_channels == 1


async def test_a_message_wakes_those_who_listen_to_its_job(hub: Hub) -> None:
    streams, connections = hub
    mine, other = Listener(), Listener()
    channel = await streams.join(uuid4(), mine)
    await streams.join(uuid4(), other)
    [connection] = connections.made

    connection.say("message", channel.name, _message(1))
    connection.say("message", "nobody", _message(1))
    connection.say("pong")
    await _settle()

    assert (mine.heard, other.heard) == (["wake"], [])
    assert channel.ring.last_seq == 1
    assert len(connections.made) == 1


async def test_a_silent_connection_is_asked_and_one_that_does_not_answer_is_made_anew(
    hub: Hub,
) -> None:
    streams, connections = hub
    channel = await streams.join(uuid4(), Listener())
    [connection] = connections.made
    connection.say("subscribe", channel.name)

    for _ in range(2):
        connection.messages.put_nowait(None)
        connection.say("pong")
    await _settle()
    assert connection.commands.count(("ping",)) == 2
    assert channel.is_subscribed
    connection.messages.put_nowait(None)
    connection.messages.put_nowait(None)
    await _until(lambda: len(connections.made) == 2)

    assert connection.commands.count(("ping",)) == 3
    assert connection.is_closed
    assert not channel.is_subscribed
    assert connections.made[1].commands == [("connect",), ("subscribe", channel.name)]


async def test_a_connection_that_breaks_is_made_anew_with_all_its_channels(hub: Hub) -> None:
    streams, connections = hub
    channels = [await streams.join(uuid4(), Listener()) for _ in range(SUBSCRIBE_CHUNK + 1)]

    connections.made[0].messages.put_nowait(ConnectionError())
    await _until(lambda: len(connections.made) == 2 and len(connections.made[1].commands) == 3)

    connect, first, second = connections.made[1].commands
    names = [channel.name for channel in channels]
    assert connect == ("connect",)
    assert first == ("subscribe", *names[:SUBSCRIBE_CHUNK])
    assert second == ("subscribe", *names[SUBSCRIBE_CHUNK:])


async def test_what_nobody_listens_to_is_left(hub: Hub) -> None:
    streams, connections = hub
    stays, goes = Listener(), Listener()
    kept, left = await streams.join(uuid4(), stays), await streams.join(uuid4(), goes)
    again = await streams.join(left.job_id, stays)

    streams.leave(left.job_id, goes)
    has_listeners = streams.has_listeners(left.job_id)
    streams.leave(left.job_id, stays)
    streams.leave(left.job_id, stays)
    streams.leave(uuid4(), stays)
    await streams._leave_deserted()
    await streams._leave_deserted()

    assert again is left
    assert has_listeners
    assert not streams.has_listeners(left.job_id)
    assert streams.has_listeners(kept.job_id)
    assert streams.num_channels == 1
    assert connections.made[0].commands[-1] == ("unsubscribe", left.name)
    assert [c[0] for c in connections.made[0].commands].count("unsubscribe") == 1
    connections.made[0].say("message", left.name, _message(1))
    await _settle()
    assert left.ring.last_seq == 0


async def test_an_end_that_this_process_made_is_told_at_once(hub: Hub) -> None:
    streams, _ = hub
    listener = Listener()
    channel = await streams.join(uuid4(), listener)

    streams.note_over(channel.job_id)
    streams.note_over(uuid4())

    assert (channel.over.is_set(), listener.heard) == (True, ["wake"])


async def test_who_waits_for_an_end_listens_as_long_as_it_waits(hub: Hub) -> None:
    streams, _ = hub
    job_id = uuid4()

    async with streams.watch(job_id) as channel:
        during = streams.has_listeners(job_id)
        streams.note_over(job_id)
        channel.confirm_subscription()
        channel.tick(time.monotonic() + 60)

    assert (during, streams.has_listeners(job_id)) == (True, False)


async def test_postgres_is_asked_for_the_ends_of_silent_jobs_some_at_a_time(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams, _ = hub
    quiet = [await streams.join(uuid4(), Listener()) for _ in range(5)]
    now = time.monotonic()
    loud = await streams.join(uuid4(), Listener())
    loud.hear(make_event(1, EventType.STARTED), now + SILENT_S)
    asked: list[list[UUID]] = []

    async def ends(_pool: object, ids: Sequence[UUID]) -> set[UUID]:
        asked.append(list(ids))
        return {quiet[1].job_id, quiet[4].job_id} & set(ids)

    monkeypatch.setattr(hubs, "finished_jobs", ends)
    monkeypatch.setattr(hubs, "FINISHED_CHUNK", 2)
    await streams._ask_for_ends(now + SILENT_S)

    assert [len(ids) for ids in asked] == [2, 2, 1]
    assert sum(map(len, asked)) == len({id_ for ids in asked for id_ in ids}) == 5
    assert [channel.over.is_set() for channel in quiet] == [False, True, False, False, True]


async def test_a_fault_in_one_tick_does_not_stop_the_next(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams, _ = hub
    monkeypatch.setattr(hubs, "TICK_S", 0.001)
    faults = [OperationalError(), ZeroDivisionError(), None]
    calls: list[float] = []

    async def ask(now: float) -> None:
        calls.append(now)
        if error := faults[min(len(calls), len(faults)) - 1]:
            raise error

    monkeypatch.setattr(streams, "_ask_for_ends", ask)
    listener = Listener()
    await streams.join(uuid4(), listener)
    await _until(lambda: len(calls) >= 3)

    assert sum(said.startswith("tick") for said in listener.heard) >= 2 * (len(calls) - 1)


class _Asyncio(SimpleNamespace):
    """asyncio, in which nobody sleeps long; notes down how long they would have."""

    def __init__(self, noted: list[Any]) -> None:
        super().__init__(**vars(asyncio) | {"sleep": self._sleep})
        self._noted = noted

    async def _sleep(self, seconds: float) -> None:
        self._noted.append(seconds)
        await asyncio.sleep(0)


async def test_a_turn_ticks_some_channels_at_a_time_and_every_other_one_asks_for_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = _hub_with(_Connections())
    listeners = [Listener() for _ in range(5)]
    for listener in listeners:
        await streams.join(uuid4(), listener)
    left = await streams.join(uuid4(), Listener())
    left.listeners.clear()
    noted: list[Any] = []

    async def ask(_now: float) -> None:
        noted.append("ask")
        if noted.count("ask") == 2:
            raise asyncio.CancelledError

    monkeypatch.setattr(hubs, "asyncio", _Asyncio(noted))
    monkeypatch.setattr(hubs, "TICKS_A_TURN", 2)
    monkeypatch.setattr(streams, "_ask_for_ends", ask)
    with suppress(asyncio.CancelledError):
        await streams._tick()

    turn = [hubs.TICK_S, 0, 0]
    assert noted == [*turn, *turn, "ask", *turn, *turn, "ask"]
    assert all(len(listener.heard) == 4 for listener in listeners)
    assert streams.num_channels == 5  # the one that nobody listens to was left


class _Unreachable(_Connections):
    """A Redis that is away at first, now and then."""

    def __init__(self, *is_away: bool) -> None:
        super().__init__()
        self._is_away = list(is_away)

    def __call__(self) -> _Subscription:
        subscription = super().__call__()
        subscription.is_away = bool(self._is_away and self._is_away.pop(0))
        return subscription


async def test_a_redis_that_is_away_is_tried_ever_later_and_anew_after_each_success(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noted: list[Any] = []
    connections = _Unreachable(*[True] * 7, False, True, False)
    hub = _hub_with(connections)
    monkeypatch.setattr(hubs, "asyncio", _Asyncio(noted))

    listening = asyncio.create_task(hub._listen())
    await _until(lambda: len(connections.made) == 8)
    connections.made[7].messages.put_nowait(ConnectionError())
    await _until(lambda: len(connections.made) == 10)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)

    assert noted == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, MAX_BACKOFF_S, 0.05, 0.1]


async def test_who_joins_while_redis_is_away_is_subscribed_once_it_is_back() -> None:
    connections = _Connections()
    hub = _hub_with(connections)
    first = await hub.join(uuid4(), Listener())
    await hub.start()
    await _until(lambda: bool(connections.made))
    await _settle()

    connections.made[0].messages.put_nowait(ConnectionError())
    await _until(lambda: connections.made[0].is_closed)
    second = await hub.join(uuid4(), Listener())
    await _until(lambda: len(connections.made) == 2)
    await _settle()
    await hub.stop()

    assert connections.made[0].commands == [("connect",), ("subscribe", first.name)]
    assert connections.made[1].commands == [("connect",), ("subscribe", first.name, second.name)]


async def test_a_message_that_can_not_be_understood_ends_no_stream(hub: Hub) -> None:
    streams, connections = hub
    listener = Listener()
    channel = await streams.join(uuid4(), listener)
    with capture_logs():  # tracebacks take long to print
        connections.made[0].say("message", channel.name, b"no number")
        await _until(lambda: len(connections.made) == 2)

    connections.made[1].say("message", channel.name, _message(1))
    await _until(lambda: listener.heard == ["wake"])

    assert connections.made[0].is_closed
    assert channel.ring.last_seq == 1


async def test_a_first_silence_is_answered_by_a_question(hub: Hub) -> None:
    _, connections = hub
    [connection] = connections.made

    connection.messages.put_nowait(None)
    await _until(lambda: ("ping",) in connection.commands)

    assert not connection.is_closed


async def test_the_end_of_an_earlier_subscription_confirms_no_new_one(hub: Hub) -> None:
    """A job may be left and joined again before Redis answers."""
    streams, connections = hub
    listener = Listener()
    channel = await streams.join(uuid4(), listener)

    connections.made[0].say("unsubscribe", channel.name)
    await _settle()

    assert not streams.is_subscribed(channel.job_id)
    assert listener.heard == []


async def test_nobody_listens_to_a_job_that_nobody_has_joined(hub: Hub) -> None:
    streams, _ = hub

    assert not streams.has_listeners(uuid4())
    assert not streams.is_subscribed(uuid4())


async def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not is_so() and time.monotonic() < deadline:
        await asyncio.sleep(0.005)
    assert is_so()


def _message(seq: int) -> bytes:
    event = make_event(seq, EventType.STARTED, attempt=1)
    return b"%d %b" % (seq, event.payload)
