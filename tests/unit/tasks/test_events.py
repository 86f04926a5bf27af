"""Events: their three encodings, and the text they add up to."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.events import (
    Event,
    EventType,
    compress_event_log,
    decompress_event_log,
    make_event,
    parse_message,
    parse_payload,
    text_of,
    token_ids_of,
)

TEXTS = ["", " ", "a\nb\r\n", "\n", "\N{GRINNING FACE}", '"\\', "\0", "e\N{COMBINING ACUTE ACCENT}"]


def token(seq: int, text: str, *ids: int) -> Event:
    return make_event(seq, EventType.TOKEN, index=0, text=text, token_ids=ids)


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

    assert text_of([started, token(2, "a"), token(3, ""), token(4, "b")]) == "ab"
    assert text_of([]) == ""


def test_gap_restates_all_text_before_it() -> None:
    gap = make_event(9, EventType.GAP, **{"from": 1, "to": 9, "text": "xyz"})

    assert text_of([token(1, "lost"), gap, token(10, "!")]) == "xyz!"


def test_token_ids_before_a_gap_are_not_counted() -> None:
    gap = make_event(9, EventType.GAP, **{"from": 1, "to": 9, "text": "xyz"})

    assert token_ids_of([token(1, "a", 1, 2), token(2, "b", 3)]) == [1, 2, 3]
    assert token_ids_of([token(1, "a", 1, 2), gap, token(10, "!", 4)]) == [4]


def test_data_is_one_json_object() -> None:
    for type_ in EventType:
        data = make_event(1, type_, text="a b c").data
        assert orjson.loads(data) == {"text": "a b c"}
