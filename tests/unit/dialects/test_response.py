"""Streams of responses: numbered, of OpenAI's own types, and equal to the finished object."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from api.dialects.fold import ShownJob
from api.dialects.response import ResponseFold, response_object
from api.streams.encoder import DialectEncoder, join_bytes
from tasks.events import Event, EventType, make_event
from tests.unit.dialects.test_chat import CALL, native_events, shown_job

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def _response_job(text: str, **request: Any) -> ShownJob:
    job = shown_job([text], tool_format="hermes", input="x", **request)
    job.row.update(is_background=False, metadata={}, finished_at=job.row["created_at"])
    return job


def _stream(job: ShownJob, events: list[Event], cursor: int = -1) -> list[dict[str, Any]]:
    encoder = DialectEncoder(ResponseFold(job), cursor)
    blocks = (encoder.begin() + join_bytes(encoder.encode(events, job.row))).split(b"\n\n")[:-1]
    lines = [
        dict(line.split(b": ", 1) for line in block.split(b"\n") if b": " in line)
        for block in blocks
    ]
    data = [json.loads(line[b"data"]) for line in lines]
    for line, event in zip(lines, data, strict=True):
        assert line[b"event"].decode() == event["type"]
        assert b"id" not in line or int(line[b"id"]) == event["sequence_number"]
    return data


@st.composite
def _text(draw: st.DrawFn) -> tuple[str, list[tuple[int, str]]]:
    text = "".join(draw(st.lists(st.sampled_from(["hello", " a <", CALL, "\n"]), max_size=4)))
    pieces, rest = [], text
    while rest:
        length = draw(st.integers(1, 11))
        pieces.append((0, rest[:length]))
        rest = rest[length:]
    return text, pieces


@given(_text())
def test_stream_ends_with_the_object_and_every_event_is_of_its_type(
    answer: tuple[str, list[tuple[int, str]]],
) -> None:
    text, pieces = answer
    job = _response_job(text)

    events = _stream(job, native_events(pieces))

    for event in events:
        EVENT.validate_python(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"] == response_object(job)
    Response.model_validate(events[-1]["response"])


@given(_text())
def test_deltas_add_up_to_their_items(answer: tuple[str, list[tuple[int, str]]]) -> None:
    text, pieces = answer
    job = _response_job(text)

    made: dict[int, str] = {}
    for event in _stream(job, native_events(pieces)):
        if event["type"].endswith(".delta"):
            made[event["output_index"]] = made.get(event["output_index"], "") + event["delta"]

    items = response_object(job)["output"]
    whole = {
        number: item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        for number, item in enumerate(items)
    }
    assert made == {number: text for number, text in whole.items() if text}


@given(_text(), st.data())
def test_resuming_anywhere_gives_identical_objects(
    answer: tuple[str, list[tuple[int, str]]], data: st.DataObject
) -> None:
    text, pieces = answer
    job = _response_job(text)
    events = native_events(pieces)
    whole = _stream(job, events)
    cursor = data.draw(st.integers(0, len(whole) - 1))

    assert _stream(job, events, cursor) == whole[cursor + 1 :]


def test_a_second_attempt_is_not_to_be_seen() -> None:
    job = _response_job("ab")
    events = native_events([(0, "a"), (0, "b")])
    again = make_event(3, EventType.STARTED, attempt=2, model="demo")
    late = [event._replace(seq=event.seq + 1) for event in events[2:]]

    assert _stream(job, [*events[:2], again, *late]) == _stream(job, events)


def test_lost_history_is_a_flat_error() -> None:
    job = _response_job("hello")
    gap = make_event(1_000_000, EventType.GAP, **{"from": 1, "to": 9, "text": "hello"})

    events = _stream(job, [gap], cursor=5)

    assert [(event["type"], event["code"]) for event in events] == [("error", "stream_expired")]
    assert "error" not in events[0]


def test_every_ending_has_its_event() -> None:
    kinds = {}
    for status in ("completed", "incomplete", "cancelled", "failed"):
        job = _response_job("x")
        job.row.update(status=status, reason="max_output_tokens", error_code="engine_error")
        events = _stream(job, native_events([(0, "x")]))
        EVENT.validate_python(events[-1])
        kinds[status] = (events[-1]["type"], events[-1]["response"]["status"])

    assert kinds == {
        "completed": ("response.completed", "completed"),
        "incomplete": ("response.incomplete", "incomplete"),
        "cancelled": ("response.incomplete", "cancelled"),
        "failed": ("response.failed", "failed"),
    }


def test_log_probabilities_of_tokens_without_text_are_in_both() -> None:
    job = _response_job("ab", include=["message.output_text.logprobs"])
    job.row.update(tool_format=None)
    values = [[-0.5, []], [-0.25, []], [-0.125, []], [-1.0, []]]
    texts = ["", "a", "b", ""]  # the first and the last are halves of something
    tokens = [
        make_event(n + 2, EventType.TOKEN, index=0, text=text, token_ids=[n], logprobs=[values[n]])
        for n, text in enumerate(texts)
    ]
    started = make_event(1, EventType.STARTED, attempt=1, model="demo")
    done = make_event(6, EventType.DONE)
    job.row["output"][0]["logprobs"] = {"token_ids": [0, 1, 2, 3], "values": values}

    events = _stream(job, [started, *tokens, done])

    for event in events:
        EVENT.validate_python(event)
    assert events[-1]["response"] == response_object(job)
    [part] = events[-1]["response"]["output"][0]["content"]
    assert [entry["logprob"] for entry in part["logprobs"]] == [-0.5, -0.25, -0.125, -1.0]


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("engine_error", "server_error"),
        ("worker_lost", "server_error"),
        ("invalid_prompt", "invalid_prompt"),
        ("invalid_grammar", "invalid_prompt"),
        ("context_length_exceeded", "invalid_prompt"),
    ],
)
def test_a_failure_says_whose_fault_it_was(code: str, shown: str) -> None:
    job = _response_job("")
    job.row.update(status="failed", reason="engine_error", error_code=code, output=[])

    error = response_object(job)["error"]

    assert error["code"] == shown
    Response.model_validate(response_object(job))
