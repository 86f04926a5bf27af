"""Events: their three encodings, and the text they add up to."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.events import (
    Event,
    EventLogReader,
    EventType,
    compress_event_log,
    decompress_event_log,
    logprobs_of,
    make_event,
    make_gap,
    parse_message,
    parse_payload,
    texts_of,
    token_ids_of,
)

TEXTS = ["", " ", "a\nb\r\n", "\n", "\N{GRINNING FACE}", '"\\', "\0", "e\N{COMBINING ACUTE ACCENT}"]


def token(seq: int, text: str, *ids: int, index: int = 0) -> Event:
    return make_event(seq, EventType.TOKEN, index=index, text=text, token_ids=ids)


@pytest.mark.parametrize("text", TEXTS)
def test_log_entry_and_message_are_read_back(text: str) -> None:
    event = token(12, text, 1, 2)

    assert parse_payload(12, event.payload) == event
    assert parse_message(b"12 " + event.payload) == event
    assert event.fields() == {"index": 0, "text": text, "token_ids": [1, 2]}


@pytest.mark.parametrize("text", TEXTS)
def test_event_never_holds_a_line_break(text: str) -> None:
    assert b"\n" not in token(1, text).payload
    assert b"\r" not in token(1, text).payload


@settings(derandomize=True, database=None)
@given(st.lists(st.text()))
def test_stored_log_is_read_back_whatever_the_text(texts: list[str]) -> None:
    events = [token(seq, text, seq) for seq, text in enumerate(texts, start=1)]

    assert decompress_event_log(compress_event_log(events)) == events


@pytest.mark.parametrize("num_events", [0, 1, 5])
@pytest.mark.parametrize(("num_fed", "num_taken"), [(1, 1), (3, 8), (10_000, 100), (7, 10_000)])
def test_stored_log_is_read_bit_by_bit_however_it_is_cut(
    num_events: int, num_fed: int, num_taken: int
) -> None:
    events = [token(seq, "the same words " * 20 * seq, seq) for seq in range(1, num_events + 1)]
    blob, log, found = compress_event_log(events), EventLogReader(), list[Event]()

    for at in range(0, len(blob), num_fed):
        log.feed(blob[at : at + num_fed])
        while (taken := log.take(num_taken)) is not None:
            found += taken

    assert found + log.end() == events
    assert log.end() == events[-1:]


def test_empty_log_is_read_back() -> None:
    assert decompress_event_log(compress_event_log([])) == []


def test_event_without_fields_is_read_back() -> None:
    marker = make_event(3, EventType.DONE)

    assert marker.payload == b"done {}"
    assert parse_message(b"3 done {}") == marker


def test_stored_log_of_repeating_text_is_small() -> None:
    events = [token(seq, " the same words", 17) for seq in range(1, 1_001)]

    blob = compress_event_log(events)

    assert len(blob) < 0.2 * sum(len(event.payload) for event in events)


def test_text_is_the_tokens_in_order() -> None:
    started = make_event(1, EventType.STARTED, attempt=1, model="m")

    assert texts_of([started, token(2, "a"), token(3, ""), token(4, "b")]) == ["ab"]
    assert texts_of([]) == [""]


def test_gap_restates_all_text_before_it() -> None:
    gap = make_gap(9, ["xyz"])

    assert texts_of([token(1, "lost"), gap, token(10, "!")]) == ["xyz!"]


def test_token_ids_before_a_gap_are_not_counted() -> None:
    gap = make_gap(9, ["xyz"])

    started = make_event(3, EventType.STARTED, attempt=2, model="m")

    assert token_ids_of([token(1, "a", 1, 2), token(2, "b", 3)]) == [[1, 2, 3]]
    assert token_ids_of([token(1, "a", 1, 2), started, token(4, "b", 3)]) == [[1, 2, 3]]
    assert token_ids_of([token(1, "a", 1, 2), gap, token(10, "!", 4)]) == [[4]]


def test_texts_and_ids_of_several_choices_are_kept_apart() -> None:
    events = [token(1, "a", 1), token(2, "x", 7, index=2), token(3, "b", 2), token(4, "y", index=2)]

    assert texts_of(events, 3) == ["ab", "", "xy"]
    assert token_ids_of(events, 3) == [[1, 2], [], [7]]


def test_gap_restates_every_choice() -> None:
    gap = make_gap(9, ["a", "", "c"])

    assert gap.fields() == {"from": 1, "to": 9, "text": "a", "texts": ["a", "", "c"]}
    assert texts_of([token(1, "lost"), gap, token(10, "d", index=2)], 3) == ["a", "", "cd"]


def test_gap_of_one_choice_has_no_list_and_is_read_as_the_first_of_several() -> None:
    gap = make_gap(9, ["a"])

    assert gap.fields() == {"from": 1, "to": 9, "text": "a"}
    assert texts_of([gap], 2) == ["a", ""]


def test_logprobs_are_those_since_the_last_gap() -> None:
    def scored(seq: int, token_id: int) -> Event:
        fields = {"index": 0, "text": "", "token_ids": [token_id], "logprobs": [[-0.5, [[1, -1]]]]}
        return make_event(seq, EventType.TOKEN, **fields)

    assert logprobs_of([scored(1, 5), scored(2, 6)]) == [[[-0.5, [[1, -1]]]] * 2]
    assert logprobs_of([scored(1, 5), make_gap(2, ["a"]), scored(3, 6)]) == [[[-0.5, [[1, -1]]]]]
    assert logprobs_of([token(1, "a", 1)]) == [[]]


def test_data_is_one_json_object() -> None:
    for type_ in EventType:
        data = make_event(1, type_, text="a b c").data
        assert orjson.loads(data) == {"text": "a b c"}
