"""When the listeners of a job are woken, and how often what is silent is looked at."""

from __future__ import annotations

import itertools
from uuid import uuid4

import pytest

from api.streams.channel import FIRST_CHECK_S, LONGEST_CHECK_S, SILENT_S, Channel
from api.streams.open_streams import MIN_POSITION_INTERVAL_S, POSITION_QUERIES_PER_S, OpenStreams
from tasks.errors import ServiceUnavailable
from tasks.events import Event, EventType, make_event
from tasks.keys import stream_channel
from tests.support.listeners import Listener


def _token(seq: int) -> Event:
    return make_event(seq, EventType.TOKEN, index=0, text="x", token_ids=[seq])


def _channel(*listeners: Listener) -> Channel:
    channel = Channel(uuid4(), 0.0)
    channel.listeners.update(listeners)
    return channel


def test_news_wake_all_and_what_is_old_nobody() -> None:
    one, two = Listener(), Listener()
    channel = _channel(one, two)

    channel.hear(_token(1), 0.0)
    channel.hear(_token(1), 0.0)

    assert one.heard == two.heard == ["wake"]
    assert channel.ring.last_seq == 1
    assert channel.name == stream_channel(channel.job_id)


def test_the_end_wakes_even_if_it_was_heard_before() -> None:
    listener = Listener()
    channel = _channel(listener)

    channel.hear(make_event(1, EventType.DONE), 0.0)
    channel.hear(make_event(1, EventType.DONE), 0.0)

    assert channel.over.is_set()
    assert listener.heard == ["wake", "wake"]


def test_an_end_that_postgres_tells_of_wakes_all() -> None:
    listener = Listener()
    channel = _channel(listener)

    channel.note_over()

    assert (channel.over.is_set(), listener.heard) == (True, ["wake"])


def test_a_subscription_that_is_confirmed_has_the_log_read() -> None:
    listener = Listener()
    channel = _channel(listener)
    before = channel.is_subscribed

    channel.confirm_subscription()

    assert (before, channel.is_subscribed, listener.heard) == (False, True, ["reconnect"])


def test_a_job_is_silent_until_something_is_heard_and_while_it_is_not_over() -> None:
    channel = _channel()

    assert [channel.is_silent(now) for now in (SILENT_S - 0.1, SILENT_S)] == [False, True]
    channel.hear(_token(1), 10.0)
    assert [channel.is_silent(10.0 + s) for s in (SILENT_S - 0.1, SILENT_S)] == [False, True]
    channel.note_over()
    assert not channel.is_silent(100.0)


def test_the_log_is_compared_ever_more_rarely_while_nothing_is_heard() -> None:
    listener = Listener()
    channel = _channel(listener)
    looked = []
    for now in range(200):
        listener.heard.clear()
        channel.tick(float(now))
        assert listener.heard[-1] == f"tick {now}"
        if "log" in listener.heard:
            looked.append(now)

    pauses = [later - earlier for earlier, later in itertools.pairwise(looked)]
    assert looked[0] == FIRST_CHECK_S
    assert pauses[:5] == [2, 4, 8, 16, LONGEST_CHECK_S]
    assert set(pauses[5:]) == {LONGEST_CHECK_S}


def test_what_is_heard_begins_the_comparisons_anew() -> None:
    listener = Listener()
    channel = _channel(listener)
    for now in range(50):
        channel.tick(float(now))
    channel.hear(_token(1), 50.0)
    looked = []
    for now in range(50, 60):
        listener.heard.clear()
        channel.tick(float(now))
        if "log" in listener.heard:
            looked.append(now)

    assert looked == [52, 54, 58]


def test_streams_are_refused_at_the_limit_and_let_in_when_one_has_ended() -> None:
    streams, one, two = OpenStreams(2), Listener(), Listener()
    streams.add(one)
    streams.check_room()
    streams.add(two)

    with pytest.raises(ServiceUnavailable):
        streams.check_room()
    with pytest.raises(ServiceUnavailable):
        streams.add(Listener())
    streams.remove(one)
    streams.remove(one)
    streams.add(one)


def test_all_streams_end_with_the_process_and_none_begins() -> None:
    streams, one, two = OpenStreams(9), Listener(), Listener()
    streams.add(one)
    streams.add(two)

    streams.end_all()

    assert one.heard == two.heard == ["end shutdown"]
    with pytest.raises(ServiceUnavailable):
        streams.add(Listener())


def test_many_streams_look_up_their_places_less_often() -> None:
    streams = OpenStreams(1_000)
    few = streams.position_interval_s
    for _ in range(500):
        streams.add(Listener())

    assert few == MIN_POSITION_INTERVAL_S
    assert streams.position_interval_s == 500 / POSITION_QUERIES_PER_S
