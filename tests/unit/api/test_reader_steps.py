"""What a reader gives at each step, by what the ring, the log and Postgres have."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID, uuid4

import orjson
import pytest
from psycopg import InterfaceError, OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError

from api.json_pieces import LaterList, ListPart
from api.streams import lists as list_reading
from api.streams import reader as reading
from api.streams.channel import Channel
from api.streams.reader import BATCH_SIZE, CROWD, JUDGE_AFTER_S, UNNUMBERED, Reader, Sources
from store.tenant_gate import TenantGate
from tasks.errors import RateLimitExceeded
from tasks.events import Event, EventType, compress_event_log, make_event, make_gap

TENANT = uuid4()
NOW = datetime.now(UTC)


class _LongWork:
    def __init__(self) -> None:
        self.num_turns = 0

    async def turn(self) -> None:
        self.num_turns += 1


class _World:
    """All that a reader can ask, and how often it asked the log."""

    def __init__(self) -> None:
        self.log: list[Event] = []
        self.stored: bytes | None = None
        self.row: dict[str, Any] | None = None  # as Postgres has it now
        self.position: int | None = None
        self.error: Exception | None = None
        self.redis_error: Exception | None = None
        self.asked: list[int] = []
        self.parts: list[int] = []  # of the stored log, where they began
        self.num_rows = 0  # read of the job
        self.long_work = _LongWork()

    async def read_log(self, _redis: Any, _job_id: UUID, after: int, count: int) -> list[Event]:
        self.asked.append(after)
        if self.redis_error:
            raise self.redis_error
        return [event for event in self.log if event.seq > after][:count]

    async def get_job(self, _pool: Any, tenant_id: UUID, _job_id: UUID) -> dict[str, Any] | None:
        assert tenant_id == TENANT
        self.num_rows += 1
        if self.error:
            raise self.error
        return self.row

    async def queue_position(self, _pool: Any, tenant_id: UUID, _job_id: UUID) -> int | None:
        assert tenant_id == TENANT
        if self.error:
            raise self.error
        return self.position

    async def read_event_log(
        self, _pool: Any, tenant_id: UUID, _job_id: UUID, offset: int, num_bytes: int
    ) -> bytes | None:
        assert tenant_id == TENANT
        self.parts.append(offset)
        return None if self.stored is None else self.stored[offset : offset + num_bytes]

    def reader(self, *, cursor: int = 0, **row: Any) -> tuple[Reader, Channel]:
        """On a channel that is acknowledged, of a job that runs."""
        fields: dict[str, Any] = {
            "id": uuid4(),
            "tenant_id": TENANT,
            "num_choices": 1,
            "status": "in_progress",
        }
        fields |= {"finished_at": None, "reason": None, "attempt": 0, **row}
        sources = Sources(
            cast(Any, None), cast(Any, None), cast(Any, self.long_work), TenantGate(8, 5.0)
        )
        reader = Reader(sources, fields, cursor)
        channel = Channel(fields["id"], 0.0)
        channel.is_subscribed = True
        reader.attach(channel, 0.0)
        return reader, channel

    def end(self, **fields: Any) -> None:
        """The job is over in Postgres."""
        self.row = {"tenant_id": TENANT, "finished_at": NOW, "output": [], "last_seq": 0, **fields}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> _World:
    world = _World()
    for name in ("read_log", "get_job", "queue_position", "read_event_log"):
        monkeypatch.setattr(reading, name, getattr(world, name))
    return world


def _token(seq: int, text: str = "x") -> Event:
    return make_event(seq, EventType.TOKEN, index=0, text=text, token_ids=[seq])


def _tokens(first: int, last: int) -> list[Event]:
    return [_token(seq) for seq in range(first, last + 1)]


def _done(seq: int) -> Event:
    return make_event(seq, EventType.DONE)


async def _next(reader: Reader) -> list[int]:
    return [event.seq for event in await reader.next()]


async def test_live_events_are_given_once_and_in_order(world: _World) -> None:
    reader, channel = world.reader()
    first = await _next(reader)
    for event in _tokens(1, 2):
        channel.hear(event, 0.0)
    both = await _next(reader)
    channel.hear(_token(2), 0.0)
    old = await _next(reader)
    channel.hear(_token(3), 0.0)

    assert (first, both, old, await _next(reader)) == ([], [1, 2], [], [3])
    assert world.asked == [0]  # once, at first
    assert world.num_rows == 0  # Postgres has nothing of a job that runs


async def test_a_log_is_read_when_the_subscription_is_acknowledged(world: _World) -> None:
    world.log = _tokens(1, 3)
    reader, channel = world.reader()
    channel.is_subscribed = False
    reader.attach(channel, 0.0)

    before = await _next(reader)
    reader.note_reconnect(0.0)

    assert (before, await _next(reader)) == ([], [1, 2, 3])


async def test_a_long_log_is_read_in_parts_behind_the_cursor(world: _World) -> None:
    world.log = _tokens(1, BATCH_SIZE + 7)
    reader, _ = world.reader(cursor=5)

    first, second, third = await _next(reader), await _next(reader), await _next(reader)

    assert (first[0], first[-1], len(first)) == (6, BATCH_SIZE + 5, BATCH_SIZE)
    assert (second, third) == ([BATCH_SIZE + 6, BATCH_SIZE + 7], [])
    assert world.asked == [5, BATCH_SIZE + 5]


async def test_what_the_ring_lacks_is_read_from_the_log(world: _World) -> None:
    reader, channel = world.reader()
    await _next(reader)
    world.log = _tokens(1, 4)
    channel.hear(_token(4), 0.0)

    assert await _next(reader) == [1, 2, 3, 4]
    assert channel.ring.last_seq == 4  # the others still read there


async def test_no_number_is_left_out_but_by_a_gap(world: _World) -> None:
    world.log = _tokens(3, 4)
    reader, _ = world.reader()
    hole = await _next(reader)
    world.log = [make_gap(1_000, ["all"]), _token(1_001)]
    reader.note_log_may_have_more()

    assert (hole, await _next(reader)) == ([], [1_000, 1_001])


async def test_a_ring_that_knows_more_than_the_log_is_forgotten(world: _World) -> None:
    reader, channel = world.reader()
    channel.hear(_token(1), 0.0)
    assert await _next(reader) == [1]
    channel.hear(_token(7), 0.0)

    lost = await _next(reader)
    cleared = channel.ring.last_seq
    world.log = _tokens(1, 7)

    assert (lost, cleared) == ([], 0)
    assert await _next(reader) == [2, 3, 4, 5, 6, 7]


async def test_redis_that_is_away_is_asked_again(world: _World) -> None:
    world.log = _tokens(1, 1)
    world.redis_error = RedisConnectionError()
    reader, _ = world.reader()

    away = await _next(reader), await _next(reader)
    world.redis_error = None
    reader.note_log_may_have_more()

    assert (away, await _next(reader)) == (([], []), [1])
    assert world.asked == [0, 0]  # not at every wake while it was away


async def test_the_end_comes_with_the_row_of_the_job(world: _World) -> None:
    reader, channel = world.reader()
    for event in (_token(1), _done(2)):
        channel.hear(event, 0.0)

    unknown = await _next(reader)
    world.end(finished_at=None)
    running = await _next(reader)
    before = (reader.is_done, reader.finished)
    world.end()
    ended = await _next(reader)

    assert (unknown, running, ended) == ([], [], [1, 2])
    assert before == (False, None)
    assert (reader.is_done, reader.finished) == (True, world.row)
    assert await _next(reader) == []


async def test_what_the_log_lacks_of_a_job_that_is_over_is_in_postgres(world: _World) -> None:
    world.stored = compress_event_log([*_tokens(1, 3), _done(4)])
    reader, channel = world.reader(cursor=2)
    early = await _next(reader)
    channel.note_over()
    unknown = await _next(reader)
    world.end(last_seq=4)

    numbers: list[int] = []
    while not reader.is_done:
        numbers += await _next(reader)

    assert (early, unknown, numbers) == ([], [], [3, 4])


async def test_a_job_that_was_over_before_is_read_at_once(world: _World) -> None:
    world.end(output=[{"index": 0, "text": "all"}], last_seq=4)
    reader, channel = world.reader(finished_at=NOW)

    assert channel.over.is_set()
    assert await _next(reader) == [5, 6]  # a gap, since no log is stored any more


async def test_a_long_stored_log_is_read_once_from_its_beginning_to_its_end(world: _World) -> None:
    world.stored = compress_event_log([*_tokens(1, 5_000), _done(5_001)])
    world.end(last_seq=5_001)
    reader, _ = world.reader(cursor=3_000, finished_at=NOW)

    steps: list[list[int]] = []
    while not reader.is_done:
        steps.append(await _next(reader))

    assert [number for step in steps for number in step] == list(range(3_001, 5_002))
    assert len(steps) > 2
    assert world.parts == [0, len(world.stored)]
    assert world.num_rows == 2  # for the log, and with the end
    assert world.long_work.num_turns > 2  # for what the client had already


async def test_a_job_that_ended_without_a_result_has_nothing_but_its_end(world: _World) -> None:
    world.end(output=None, last_seq=None)
    reader, _ = world.reader(finished_at=NOW)

    assert await _next(reader) == [1]
    assert reader.is_done


@pytest.mark.parametrize("error", [OperationalError(), InterfaceError(), RateLimitExceeded()])
async def test_postgres_that_is_away_is_asked_again(world: _World, error: Exception) -> None:
    reader, channel = world.reader()
    channel.hear(_done(1), 0.0)
    world.error = error

    away = await _next(reader)
    world.error = None
    world.end()

    assert (away, await _next(reader)) == ([], [1])


async def test_a_job_that_waits_tells_its_place_when_it_changes(world: _World) -> None:
    reader, channel = world.reader(status="queued")
    told = []
    for position in (4, 4, 3, None):
        world.position = position
        reader.note_position_is_due()
        told.append([event.fields().get("position") for event in await reader.next()])
    world.position = 2
    untold = await reader.next()
    channel.hear(_token(1), 0.0)
    reader.note_position_is_due()
    [queued] = await reader.next()

    assert told == [[4], [], [3], []]
    assert list(untold) == []
    assert (queued.type, queued.seq) == (EventType.QUEUED, UNNUMBERED)
    assert queued.fields() == {"position": 2, "eta_s": None, "reason": "waiting_for_slot"}
    assert reader.is_waiting
    assert await _next(reader) == [1]
    assert not reader.is_waiting
    reader.note_position_is_due()
    assert await _next(reader) == []


async def test_a_job_that_runs_has_no_place(world: _World) -> None:
    world.position = 3
    reader, _ = world.reader()

    reader.note_position_is_due()

    assert await _next(reader) == []
    assert not reader.is_waiting


def test_a_reader_at_the_beginning_can_not_be_ahead(world: _World) -> None:
    reader, _ = world.reader()

    assert not reader.tick(1_000.0)


def test_a_reader_that_may_be_ahead_looks_now_and_then(world: _World) -> None:
    reader, _ = world.reader(cursor=5)

    ticks = [reader.tick(now) for now in (0.0, JUDGE_AFTER_S - 0.1, JUDGE_AFTER_S)]
    later = [reader.tick(JUDGE_AFTER_S + s) for s in (0.1, JUDGE_AFTER_S)]
    reader.note_reconnect(100.0)

    assert (ticks, later) == ([False, False, True], [False, True])
    assert [reader.tick(100.0 + s) for s in (0.1, JUDGE_AFTER_S)] == [False, True]


async def test_a_reader_that_is_ahead_gets_the_text_so_far(world: _World) -> None:
    world.log = [_token(seq, f"{seq} ") for seq in range(1, BATCH_SIZE + 5)]
    reader, _ = world.reader(cursor=9_000)

    before = await _next(reader)
    reader.tick(JUDGE_AFTER_S)
    [gap] = await reader.next()
    world.log.append(_token(BATCH_SIZE + 5))
    reader.note_log_may_have_more()

    assert before == []
    assert (gap.type, gap.seq) == (EventType.GAP, BATCH_SIZE + 4)
    assert gap.fields()["text"] == "".join(f"{seq} " for seq in range(1, BATCH_SIZE + 5))
    assert await _next(reader) == [BATCH_SIZE + 5]
    assert not reader.tick(1_000.0)  # it is where the log is


async def test_a_reader_whose_place_is_in_the_log_waits(world: _World) -> None:
    world.log = _tokens(1, 5)
    reader, _ = world.reader(cursor=5)

    reader.tick(JUDGE_AFTER_S)

    assert await _next(reader) == []
    assert world.asked == [5, 4]
    assert not reader.tick(1_000.0)


async def test_a_reader_that_looks_for_its_place_is_given_what_follows(world: _World) -> None:
    reader, _ = world.reader(cursor=5)
    await _next(reader)
    world.log = _tokens(1, 6)

    reader.tick(JUDGE_AFTER_S)

    assert await _next(reader) == [6]
    assert world.asked == [5, 5]


@pytest.mark.parametrize("log", [[], _tokens(2, 3)])
async def test_a_log_without_its_beginning_is_no_text_so_far(
    world: _World, log: list[Event]
) -> None:
    world.log = log
    reader, _ = world.reader(cursor=9)

    reader.tick(JUDGE_AFTER_S)

    assert await _next(reader) == []
    assert reader.tick(1_000.0)  # it looks again


async def test_the_text_so_far_is_asked_for_once_a_look(world: _World) -> None:
    reader, _ = world.reader(cursor=9)
    reader.tick(JUDGE_AFTER_S)
    await _next(reader)
    world.asked.clear()

    reader.note_log_may_have_more()
    await _next(reader)

    assert world.asked == [9]


async def test_a_reader_that_is_ahead_of_a_job_that_is_over_asks_postgres(world: _World) -> None:
    world.log = _tokens(1, 3)
    world.end(output=[{"index": 0, "text": "all"}], last_seq=4)
    reader, channel = world.reader(cursor=9)
    channel.note_over()

    reader.tick(JUDGE_AFTER_S)

    assert await _next(reader) == [6]  # of the end alone: the text would be 5


def test_many_who_follow_one_job_are_a_crowd(world: _World) -> None:
    reader, channel = world.reader()
    fresh = Reader(reader._sources, reader._row, 0)
    channel.listeners.update(cast(Any, object()) for _ in range(CROWD))

    before = (fresh.is_crowded, reader.is_crowded)
    channel.listeners.add(cast(Any, object()))

    assert before == (False, False)
    assert reader.is_crowded


async def test_a_list_of_a_finished_job_is_read_bit_by_bit_each_in_its_turn(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, _ = world.reader()
    turns: list[int] = []

    async def rows(
        _pool: Any, tenant_id: UUID, job_id: UUID, choice: int, *, of_prompt: bool
    ) -> AsyncGenerator[tuple[str, str]]:
        assert (tenant_id, job_id, choice) == (TENANT, reader.job_id, 1)
        assert of_prompt
        for number in (7, 8):
            turns.append(world.long_work.num_turns)
            yield f"[{number}]", f"[[-{number}.0, []]]"

    monkeypatch.setattr(list_reading, "read_logprobs", rows)
    entries = lambda: lambda ids, values: list(zip(ids, values, strict=True))  # noqa: E731
    later = LaterList((ListPart(1, entries, is_prompt=True),))

    data = b"".join([bit async for bit in reader.read_list(later)])

    again = b"".join([bit async for bit in reader.read_list(later)])
    assert orjson.loads(data) == orjson.loads(again) == [[7, [-7.0, []]], [8, [-8.0, []]]]
    assert (turns, reader.long_work.num_turns) == ([0, 1], 4)  # type: ignore[attr-defined]
    assert (reader.tenant_id, reader.is_done) == (TENANT, False)
