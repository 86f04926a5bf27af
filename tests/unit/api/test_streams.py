from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from openai._streaming import SSEDecoder

from api.streams.encoder import NativeEncoder, join_bytes
from api.streams.history import History
from api.streams.reader import UNNUMBERED
from api.streams.ring import Ring
from tasks.events import Event, EventLogReader, EventType, compress_event_log, make_event

OUTPUT: list[dict[str, Any]] = [{"index": 0, "text": "the whole", "finish_reason": "stop"}]


def _token(seq: int) -> Event:
    return make_event(seq, EventType.TOKEN, index=0, text=str(seq), token_ids=[seq])


def _gap(seq: int) -> Event:
    return make_event(seq, EventType.GAP, **{"from": 1, "to": seq, "text": "all"})


def remaining_events(
    cursor: int, *, event_log: bytes | None, output: list[dict[str, Any]] | None, last_seq: int
) -> list[Event]:
    """All of them, from a log that is read a few bytes at a time."""

    async def read(offset: int, num_bytes: int) -> bytes | None:
        return None if event_log is None else event_log[offset : offset + 3]

    async def all_of() -> list[Event]:
        history = History(read, output=output, last_seq=last_seq)
        events: list[Event] = []
        while not events or events[-1].type != EventType.DONE:
            events += await history.next(events[-1].seq if events else cursor)
        return events

    return asyncio.run(all_of())


def test_the_end_of_a_log_can_be_asked_for_again() -> None:
    log = EventLogReader()
    log.feed(compress_event_log([_token(1), _token(2)]))
    while log.take(8) is not None:
        pass

    assert _seqs(log.end()) == _seqs(log.end()) == [2]


def _seqs(events: list[Event] | None) -> list[int] | None:
    return None if events is None else [event.seq for event in events]


class TestRing:
    def test_gives_what_follows_the_cursor(self) -> None:
        ring = Ring()
        for seq in (3, 4, 5):
            ring.add(_token(seq))

        assert _seqs(ring.after(2)) == [3, 4, 5]
        assert _seqs(ring.after(4)) == [5]
        assert _seqs(ring.after(5)) == []
        assert _seqs(ring.after(9)) == []

    def test_says_when_it_does_not_reach_back(self) -> None:
        ring = Ring(size=2)
        for seq in (1, 2, 3):
            ring.add(_token(seq))

        assert ring.after(0) is None
        assert _seqs(ring.after(1)) == [2, 3]

    def test_drops_old_events_and_starts_anew_after_a_hole(self) -> None:
        ring = Ring()
        ring.add(_token(1))

        assert not ring.add(_token(1))
        assert ring.add(_token(7))
        assert ring.after(1) is None
        assert _seqs(ring.after(6)) == [7]

    def test_a_gap_serves_every_reader_before_it(self) -> None:
        ring = Ring()
        ring.add(_token(1))
        ring.add(_gap(1_000))
        ring.add(_token(1_001))

        assert _seqs(ring.after(0)) == [1_000, 1_001]
        assert _seqs(ring.after(500)) == [1_000, 1_001]

    def test_empty_after_clear(self) -> None:
        ring = Ring()
        ring.add(_token(1))
        ring.clear()

        assert ring.after(0) == []
        assert ring.add(_token(1))


class TestHistory:
    LOG = compress_event_log([_token(1), _token(2), make_event(3, EventType.DONE)])

    @pytest.mark.parametrize(("cursor", "seqs"), [(0, [1, 2, 3]), (1, [2, 3]), (2, [3]), (3, [3])])
    def test_stored_log_is_replayed(self, cursor: int, seqs: list[int]) -> None:
        events = remaining_events(cursor, event_log=self.LOG, output=OUTPUT, last_seq=3)

        assert _seqs(events) == seqs
        assert events[-1].type == "done"

    @pytest.mark.parametrize(("cursor", "seqs"), [(0, [1, 2, 3]), (1, [2, 3]), (2, [2])])
    def test_a_log_that_ends_without_its_end_is_ended(self, cursor: int, seqs: list[int]) -> None:
        """A reader that has all of it hears of the end under a number that it has."""
        log = compress_event_log([_token(1), _token(2)])

        events = remaining_events(cursor, event_log=log, output=OUTPUT, last_seq=3)

        assert _seqs(events) == seqs
        assert events[-1].type == "done"

    @pytest.mark.parametrize("cursor", [4, 5, 6, 9, 2**53])
    def test_cursor_beyond_the_end_hears_of_the_end_under_its_own_number(self, cursor: int) -> None:
        events = remaining_events(cursor, event_log=self.LOG, output=OUTPUT, last_seq=3)

        assert [(event.type, event.seq) for event in events] == [("done", 3)]

    def test_without_a_log_all_text_is_restated(self) -> None:
        events = remaining_events(2, event_log=None, output=OUTPUT, last_seq=5)

        assert [(event.type, event.seq) for event in events] == [("gap", 6), ("done", 7)]

    @pytest.mark.parametrize(("cursor", "seqs"), [(5, [6, 7]), (6, [7]), (7, [7]), (8, [7])])
    def test_who_comes_back_meets_no_number_twice_for_two_events(
        self, cursor: int, seqs: list[int]
    ) -> None:
        events = remaining_events(cursor, event_log=None, output=OUTPUT, last_seq=5)

        assert _seqs(events) == seqs
        assert [event.type for event in events] == ["gap", "done"][-len(seqs) :]

    @pytest.mark.parametrize(("cursor", "seqs"), [(5, [6]), (6, [6]), (7, [6])])
    def test_who_comes_back_for_a_job_without_output_hears_of_its_one_end(
        self, cursor: int, seqs: list[int]
    ) -> None:
        assert _seqs(remaining_events(cursor, event_log=None, output=[], last_seq=5)) == seqs

    def test_all_text_of_several_choices_is_restated(self) -> None:
        output = [{"index": i, "text": text} for i, text in enumerate(("one", "two"))]

        gap, _ = remaining_events(2, event_log=None, output=output, last_seq=5)

        assert gap.fields() == {"from": 1, "to": 6, "text": "one", "texts": ["one", "two"]}

    def test_job_without_output_just_ends(self) -> None:
        outputs: list[list[dict[str, object]] | None] = [None, []]
        for output in outputs:
            events = remaining_events(2, event_log=None, output=output, last_seq=0)
            assert [(event.type, event.seq) for event in events] == [("done", 1)]

    def test_log_that_begins_with_a_gap_serves_readers_before_it(self) -> None:
        log = compress_event_log([_gap(100), _token(101), make_event(102, EventType.DONE)])

        assert _seqs(remaining_events(0, event_log=log, output=OUTPUT, last_seq=102)) == [
            100,
            101,
            102,
        ]
        assert _seqs(remaining_events(50, event_log=log, output=OUTPUT, last_seq=102)) == [
            100,
            101,
            102,
        ]


class TestFraming:
    def test_openais_decoder_reads_our_bytes(self) -> None:
        """Its decoder dispatches an event without data at any blank line after an `id:`."""
        queued = make_event(UNNUMBERED, EventType.QUEUED, position=1)
        encoder = NativeEncoder()
        blocks = [
            *encoder.encode([queued], None),
            b":\n",
            *encoder.encode([_token(1)], None),
            b":\n",
            b":\n",
            *encoder.encode([make_event(2, EventType.DONE, job={})], None),
        ]

        decoded = list(SSEDecoder().iter_bytes(iter([join_bytes(blocks)])))

        assert [event.event for event in decoded] == ["queued", "token", "done"]
        assert [json.loads(event.data) for event in decoded][1]["text"] == "1"
        assert decoded[2].id == "2"

    def test_any_split_of_the_bytes_reads_the_same(self) -> None:
        encoder = NativeEncoder()
        blocks = [*encoder.encode([_token(1)], None), b":\n", *encoder.encode([_gap(2)], None)]
        data = join_bytes(blocks)
        response = httpx.Response(200, content=data)

        decoded = list(SSEDecoder().iter_bytes(response.iter_bytes(chunk_size=1)))

        assert [event.id for event in decoded] == ["1", "2"]
        assert decoded[0].retry == 1000
