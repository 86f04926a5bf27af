"""The two scripts behind a token stream, on every Redis at hand."""

from __future__ import annotations

import pytest
import redis.asyncio

from tasks import keys
from tasks.events import EventType, make_event
from tasks.ids import uuid7
from tasks.stream import Append, Code, Reply, drop_log, drop_logs, read_log
from tests.integration.tasks.conftest import (
    RedisServer,
    StreamEnd,
    heard,
    token,
    tokens,
)

FINAL = [make_event(4, EventType.DONE)]


def test_appended_events_are_in_the_log_in_order(stream: StreamEnd) -> None:
    stream.open(1)

    replies = [stream.append(tokens(1, 3)), stream.append(tokens(4, 4))]

    assert replies == [Reply(Code.OK, 3), Reply(Code.OK, 4)]
    assert stream.log() == tokens(1, 4)


def test_same_append_twice_gives_the_same_log(stream: StreamEnd) -> None:
    stream.open(1)

    replies = [stream.append(tokens(1, 3)) for _ in range(3)]

    assert replies == [Reply(Code.OK, 3)] * 3
    assert stream.log() == tokens(1, 3)


def test_repetition_publishes_nothing_again(stream: StreamEnd) -> None:
    stream.open(1)
    subscription = stream.subscribe()

    stream.append(tokens(1, 3))
    stream.append(tokens(1, 3))
    stream.append(tokens(4, 4))

    assert heard(subscription, 4) == tokens(1, 4)
    subscription.close()


def test_append_that_overlaps_adds_only_what_is_new(stream: StreamEnd) -> None:
    stream.open(1)
    stream.append(tokens(1, 3))

    reply = stream.append(tokens(2, 5))

    assert reply == Reply(Code.OK, 5)
    assert stream.log() == tokens(1, 5)


def test_late_repetition_of_an_old_append_changes_nothing(stream: StreamEnd) -> None:
    stream.open(1)
    stream.append(tokens(1, 2))
    stream.append(tokens(3, 5))

    reply = stream.append(tokens(1, 2))

    assert reply == Reply(Code.OK, 5)
    assert stream.log() == tokens(1, 5)


def test_published_messages_are_the_log_entries(stream: StreamEnd) -> None:
    subscription = stream.subscribe()
    stream.open(1)
    events = [token(1, "a\nb"), token(2, "\N{GRINNING FACE}"), token(3, ""), *FINAL]

    stream.append(events, is_final=True)

    assert heard(subscription, 4) == stream.log() == events
    subscription.close()


def test_hole_is_refused_and_named(stream: StreamEnd) -> None:
    stream.open(1)
    stream.append(tokens(1, 3))

    reply = stream.append(tokens(5, 6))

    assert reply == Reply(Code.HOLE, 3)
    assert stream.log() == tokens(1, 3)


def test_reset_begins_the_log_anew_at_the_first_event(stream: StreamEnd) -> None:
    stream.open(1)
    stream.append(tokens(1, 3))
    gap = make_event(1_000, EventType.GAP, **{"from": 1, "to": 1_000, "text": "abc"})

    reply = stream.append([gap, token(1_001)], resets_log=True)

    assert reply == Reply(Code.OK, 1_001)
    assert stream.log() == [gap, token(1_001)]


def test_repeated_reset_gives_the_same_log(stream: StreamEnd) -> None:
    stream.open(1)

    replies = [stream.append(tokens(7, 9), resets_log=True) for _ in range(2)]

    assert replies == [Reply(Code.OK, 9)] * 2
    assert stream.log() == tokens(7, 9)


def test_late_repetition_of_a_reset_takes_nothing_back(stream: StreamEnd) -> None:
    stream.open(1)
    stream.append(tokens(1, 3), resets_log=True)
    stream.append(tokens(4, 6))

    reply = stream.append(tokens(1, 3), resets_log=True)

    assert reply == Reply(Code.OK, 6)
    assert stream.log() == tokens(1, 6)


def test_older_attempt_is_fenced_from_the_open_on(stream: StreamEnd) -> None:
    stream.open(1)
    stream.append(tokens(1, 3))
    stream.open(2, 3)

    replies = [
        stream.append(tokens(4, 4)),
        stream.append(tokens(1, 4), resets_log=True),
        stream.append(FINAL, is_final=True),
        stream.open(1),
    ]

    assert replies == [Reply(Code.FENCED, 3)] * 4
    assert stream.log() == tokens(1, 3)


def test_older_attempt_is_fenced_though_the_log_was_lost(stream: StreamEnd) -> None:
    stream.open(1)
    stream.append(tokens(1, 3))
    stream.client.flushall()
    assert stream.open(2, 3).code == Code.LOG_LOST

    replies = [stream.append(tokens(4, 4)), stream.append(tokens(1, 4), resets_log=True)]

    assert [reply.code for reply in replies] == [Code.FENCED] * 2
    assert stream.log() == []


def test_events_of_an_older_attempt_are_not_taken_for_a_repetition(stream: StreamEnd) -> None:
    """Redis forgot who owns the stream, and a stale attempt came first."""
    stream.open(2)
    stream.client.flushall()
    stream.append(tokens(1, 5, "stale"), attempt=1, resets_log=True)

    refused = stream.append(tokens(4, 5), attempt=2)
    begun_anew = stream.append(tokens(1, 5), attempt=2, resets_log=True)

    assert refused == Reply(Code.HOLE, 5)
    assert begun_anew == Reply(Code.OK, 5)
    assert stream.log() == tokens(1, 5)


def test_first_append_without_an_open_begins_the_log(stream: StreamEnd) -> None:
    """Redis was away when the attempt began."""
    replies = [stream.append(tokens(1, 2)), stream.append(tokens(3, 3))]

    assert replies == [Reply(Code.OK, 2), Reply(Code.OK, 3)]
    assert stream.open(2, 3) == Reply(Code.OK, 3)


def test_log_left_without_its_owner_is_begun_anew(stream: StreamEnd) -> None:
    stream.open(1)
    stream.append(tokens(1, 5))
    stream.client.delete(keys.stream_meta(stream.job_id))

    reply = stream.append(tokens(1, 3))

    assert reply == Reply(Code.OK, 3)
    assert stream.log() == tokens(1, 3)


def test_final_stream_takes_nothing_more(stream: StreamEnd) -> None:
    stream.open(1)
    stream.append([*tokens(1, 3), *FINAL], is_final=True)

    replies = [
        stream.append(tokens(5, 5)),
        stream.append(FINAL, is_final=True),
        stream.append(tokens(1, 2), attempt=2, resets_log=True),
        stream.open(2, 4),
    ]

    assert replies == [Reply(Code.FINAL, 4)] * 4
    assert stream.log() == [*tokens(1, 3), *FINAL]


def test_running_stream_is_kept_longer_than_a_final_one(stream: StreamEnd) -> None:
    stream.open(1)
    stream.append(tokens(1, 3))
    running = stream.ttls_ms()
    stream.append(FINAL, is_final=True)

    final = stream.ttls_ms()

    for ttl in running:
        assert 0.9 * keys.STREAM_RUNNING_TTL_MS < ttl <= keys.STREAM_RUNNING_TTL_MS
    for ttl in final:
        assert 0.9 * keys.STREAM_FINAL_TTL_MS < ttl <= keys.STREAM_FINAL_TTL_MS


def test_an_append_that_renews_nothing_leaves_how_long_the_stream_is_kept(
    stream: StreamEnd,
) -> None:
    stream.open(1)
    stream.append(tokens(1, 3))
    for key in (keys.stream_meta(stream.job_id), keys.stream_log(stream.job_id)):
        stream.client.pexpire(key, 10_000)

    stream.writer.append([Append(stream.job_id, 1, tokens(4, 4), renews=False)])
    kept = stream.ttls_ms()
    stream.append(tokens(5, 5))

    assert all(0 < ttl <= 10_000 for ttl in kept)
    assert all(ttl > 0.9 * keys.STREAM_RUNNING_TTL_MS for ttl in stream.ttls_ms())


def test_a_log_begun_anew_is_not_kept_for_ever(stream: StreamEnd) -> None:
    stream.open(1)
    stream.append(tokens(1, 3))

    again = Append(stream.job_id, 1, tokens(7, 9), resets_log=True, renews=False)
    stream.writer.append([again])

    assert all(ttl > 0.9 * keys.STREAM_RUNNING_TTL_MS for ttl in stream.ttls_ms())


def test_open_keeps_log_and_owner_equally_long(stream: StreamEnd) -> None:
    stream.open(1)
    stream.append(tokens(1, 3))
    for key in (keys.stream_meta(stream.job_id), keys.stream_log(stream.job_id)):
        stream.client.pexpire(key, 10_000)

    stream.open(2, 3)

    meta_ttl, log_ttl = stream.ttls_ms()
    assert meta_ttl == pytest.approx(log_ttl, abs=100)
    assert log_ttl > 0.9 * keys.STREAM_RUNNING_TTL_MS


def test_first_attempt_begins_at_nothing(stream: StreamEnd) -> None:
    assert stream.open(1) == Reply(Code.OK, 0)


def test_open_may_be_repeated(stream: StreamEnd) -> None:
    stream.open(1)
    stream.append(tokens(1, 2))

    assert [stream.open(2, 2) for _ in range(2)] == [Reply(Code.OK, 2)] * 2


def test_whole_log_is_continued(stream: StreamEnd) -> None:
    stream.open(1)
    stream.append(tokens(1, 5))

    opened = stream.open(2, 3)
    appended = stream.append(tokens(6, 6), attempt=2)

    assert opened == Reply(Code.OK, 5)
    assert appended == Reply(Code.OK, 6)
    assert stream.log() == tokens(1, 6)


def test_log_behind_the_checkpoint_has_lost_its_end(stream: StreamEnd) -> None:
    stream.open(1)
    stream.append(tokens(1, 3))

    assert stream.open(2, 4) == Reply(Code.LOG_LOST, 3)


def test_log_that_is_gone_is_lost_for_a_later_attempt(stream: StreamEnd) -> None:
    stream.open(1)
    stream.append(tokens(1, 3))
    stream.client.flushall()

    assert stream.open(2) == Reply(Code.LOG_LOST, 0)
    assert stream.open(3) == Reply(Code.LOG_LOST, 0)


def test_a_stream_in_which_nothing_was_said_is_whole(stream: StreamEnd) -> None:
    replies = [stream.open(attempt) for attempt in (1, 2, 3)]

    assert replies == [Reply(Code.OK, 0)] * 3


@pytest.mark.parametrize("last", [1, 3])
def test_log_gone_beside_its_owner_is_lost(stream: StreamEnd, last: int) -> None:
    stream.open(1)
    stream.append(tokens(1, last))
    stream.client.delete(keys.stream_log(stream.job_id))

    assert stream.open(2, last) == Reply(Code.LOG_LOST, last)


def test_a_repetition_does_not_hide_that_the_log_is_gone(stream: StreamEnd) -> None:
    stream.open(1)
    stream.append(tokens(1, 3))
    stream.client.delete(keys.stream_log(stream.job_id))

    assert stream.append(tokens(2, 3)) == Reply(Code.HOLE, 3)
    assert stream.log() == []


@pytest.mark.parametrize("last", [1, 3])
def test_log_gone_under_a_running_attempt_is_a_hole(stream: StreamEnd, last: int) -> None:
    stream.open(1)
    stream.append(tokens(1, last))
    stream.client.delete(keys.stream_log(stream.job_id))

    refused = [stream.append(tokens(first, last + 1)) for first in (1, last + 1)]

    assert refused == [Reply(Code.HOLE, last)] * 2
    assert stream.log() == []


def test_newer_attempt_keeps_an_older_one_from_opening(stream: StreamEnd) -> None:
    stream.open(3)

    assert stream.open(2) == Reply(Code.FENCED, 0)


def test_lost_data_makes_the_running_attempt_append_from_memory(stream: StreamEnd) -> None:
    stream.open(1)
    stream.append(tokens(1, 5))
    stream.client.flushall()

    refused = stream.append(tokens(6, 6))
    begun_anew = stream.append(tokens(1, 6), resets_log=True)

    assert refused == Reply(Code.HOLE, 0)
    assert begun_anew == Reply(Code.OK, 6)
    assert stream.log() == tokens(1, 6)


def test_log_of_another_run_of_redis_may_have_lost_its_end(
    durable_redis: RedisServer, durable_stream: StreamEnd
) -> None:
    durable_stream.open(1)
    durable_stream.append(tokens(1, 5))
    durable_redis.restart()

    running = durable_stream.append(tokens(6, 6))
    successor = durable_stream.open(2, 3)

    assert running == Reply(Code.OK, 6)
    assert successor == Reply(Code.LOG_LOST, 6)
    assert durable_stream.log() == tokens(1, 6)


def test_log_begun_anew_after_a_restart_is_whole_again(
    durable_redis: RedisServer, durable_stream: StreamEnd
) -> None:
    durable_stream.open(1)
    durable_stream.append(tokens(1, 5))
    durable_redis.restart()
    durable_stream.append(tokens(1, 5), resets_log=True)

    assert durable_stream.open(2, 3) == Reply(Code.OK, 5)


def test_scripts_are_loaded_again_after_a_restart(
    redis_server: RedisServer, stream: StreamEnd
) -> None:
    stream.open(1)
    stream.append(tokens(1, 2))
    redis_server.restart()

    refused = stream.append(tokens(3, 3))
    begun_anew = stream.append(tokens(1, 3), resets_log=True)

    assert refused.code == Code.HOLE
    assert begun_anew == Reply(Code.OK, 3)
    assert stream.open(2, 3) == Reply(Code.OK, 3)


def test_one_call_appends_to_64_jobs(stream: StreamEnd) -> None:
    job_ids = [uuid7() for _ in range(64)]
    for job_id in job_ids:
        stream.writer.open(job_id, 1, 0)
    appends = [Append(job_id, 1, tokens(1, 1 + i % 3)) for i, job_id in enumerate(job_ids)]

    replies = [stream.writer.append(appends) for _ in range(2)]

    assert replies[0] == replies[1] == [Reply(Code.OK, 1 + i % 3) for i in range(64)]
    logs = [stream.writer.read_log(job_id) for job_id in job_ids]
    assert logs == [tokens(1, 1 + i % 3) for i in range(64)]


def test_one_fenced_job_of_a_call_leaves_the_others_alone(stream: StreamEnd) -> None:
    job_ids = [uuid7() for _ in range(3)]
    stream.writer.open(job_ids[1], 2, 0)

    replies = stream.writer.append([Append(job_id, 1, tokens(1, 2)) for job_id in job_ids])

    assert [reply.code for reply in replies] == [Code.OK, Code.FENCED, Code.OK]


def test_a_key_that_holds_something_else_leaves_the_others_alone(
    redis_server: RedisServer, stream: StreamEnd
) -> None:
    job_ids = [uuid7() for _ in range(3)]
    appends = [Append(job_id, 1, tokens(1, 2)) for job_id in job_ids]
    with redis.Redis.from_url(redis_server.server.url) as client:
        client.set(keys.stream_log(job_ids[1]), "something else")

    replies = stream.writer.append(appends)

    assert [reply.code for reply in replies] == [Code.OK, Code.REFUSED, Code.OK]
    assert stream.writer.read_log(job_ids[2]) == tokens(1, 2)
    with pytest.raises(redis.ResponseError):  # as if all that there is to append is refused
        stream.writer.append(appends[1:2])


async def test_reader_gets_what_follows_its_last_event(
    redis_server: RedisServer, stream: StreamEnd
) -> None:
    stream.open(1)
    stream.append(tokens(1, 9))

    async with redis.asyncio.Redis.from_url(redis_server.server.url) as client:
        everything = await read_log(client, stream.job_id, 0)
        rest = await read_log(client, stream.job_id, 6)
        page = await read_log(client, stream.job_id, 2, count=3)
        nothing = await read_log(client, stream.job_id, 9)

    assert everything == tokens(1, 9)
    assert rest == tokens(7, 9)
    assert page == tokens(3, 5)
    assert nothing == []


async def test_a_dropped_log_is_empty_and_stays_so(
    redis_server: RedisServer, stream: StreamEnd
) -> None:
    gone, kept = StreamEnd(stream.client, stream.writer, uuid7()), uuid7()
    for job_id in (stream.job_id, gone.job_id, kept):
        stream.writer.append([Append(job_id, 1, tokens(1, 3))])

    async with redis.asyncio.Redis.from_url(redis_server.server.url) as client:
        await drop_log(client, stream.job_id)
    drop_logs(stream.client, [gone.job_id])

    for dropped in (stream, gone):
        assert dropped.append(tokens(4, 4)) == Reply(Code.FINAL, 3)
        assert dropped.log() == []
        meta_ttl_ms, _ = dropped.ttls_ms()
        assert 0 < meta_ttl_ms <= keys.STREAM_FINAL_TTL_MS
    assert stream.writer.read_log(kept) == tokens(1, 3)
