"""Chat streams: pure, exact, and shaped as OpenAI's own client expects."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from api.dialects.chat import ChatFold, chat_completion
from api.dialects.completion import CompletionFold, text_completion
from api.dialects.fold import Fold, ShownJob
from api.errors import status_of
from api.streams.encoder import DialectEncoder, join_bytes
from tasks.errors import EngineFailed, ServiceError
from tasks.events import Event, EventType, make_event

JOB_ID = UUID(int=7 << 76 | 2 << 62 | 0xABC)
CALL = '<tool_call>{"name": "f", "arguments": {"a": "b"}}</tool_call>'


def shown_job(texts: list[str], *, tool_format: str | None = None, **request: Any) -> ShownJob:
    row = {
        "id": JOB_ID,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        "model": "demo",
        "model_requested": "demo",
        "service_tier": "default",
        "num_choices": len(texts),
        "tool_format": tool_format,
        "status": "completed",
        "reason": None,
        "input_tokens": 5,
        "output_tokens": 9,
        "cached_tokens": 2,
        "cost_micros": 11,
        "currency": "USD",
        "error_code": None,
        "error_message": None,
        "error_retryable": None,
        "output": [
            {"index": index, "text": text, "finish_reason": "stop"}
            for index, text in enumerate(texts)
        ],
    }
    return ShownJob(row, request)


def native_events(pieces: list[tuple[int, str]]) -> list[Event]:
    """As a worker makes them."""
    started = make_event(1, EventType.STARTED, attempt=1, model="demo")
    tokens = [
        make_event(seq, EventType.TOKEN, index=index, text=text, token_ids=[seq])
        for seq, (index, text) in enumerate(pieces, start=2)
    ]
    return [started, *tokens, make_event(len(pieces) + 2, EventType.DONE)]


def _blocks(fold: Fold, job: ShownJob, events: list[Event], cursor: int = 0) -> list[bytes]:
    encoder = DialectEncoder(fold, cursor)
    data = encoder.begin() + join_bytes(encoder.encode(events, job.row))
    return data.split(b"\n\n")[:-1]


def _data(block: bytes) -> Any:
    [line] = [line for line in block.split(b"\n") if line.startswith(b"data: ")]
    payload = line.removeprefix(b"data: ")
    return None if payload == b"[DONE]" else json.loads(payload)


def _id(block: bytes) -> int | None:
    numbers = [line for line in block.split(b"\n") if line.startswith(b"id: ")]
    return int(numbers[0].removeprefix(b"id: ")) if numbers else None


@st.composite
def _answers(draw: st.DrawFn) -> tuple[list[str], list[tuple[int, str]]]:
    """Texts of one to three choices, and how they come in pieces."""
    texts = draw(
        st.lists(
            st.sampled_from(["", "plain", f"a {CALL}", CALL * 2, "<tool_"]), min_size=1, max_size=3
        )
    )
    pieces = []
    rest = dict(enumerate(texts))
    while any(rest.values()):
        index = draw(st.sampled_from([index for index, text in rest.items() if text]))
        length = draw(st.integers(1, 9))
        pieces.append((index, rest[index][:length]))
        rest[index] = rest[index][length:]
    return texts, pieces


@given(_answers(), st.booleans())
def test_stream_adds_up_to_the_object(
    answers: tuple[list[str], list[tuple[int, str]]], has_usage: bool
) -> None:
    """By OpenAI's own accumulator, and every chunk of its own type."""
    texts, pieces = answers
    job = shown_job(texts, tool_format="hermes", stream_options={"include_usage": has_usage})

    chunks = [_data(block) for block in _blocks(ChatFold(job), job, native_events(pieces))]

    assert chunks.pop() is None  # [DONE]
    state: Any = ChatCompletionStreamState()
    for chunk in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk, strict=True))
    whole = ChatCompletion.model_validate(chat_completion(job), strict=True)
    made = state.get_final_completion()
    for mine, theirs in zip(made.choices, whole.choices, strict=True):
        assert (mine.message.content or "") == (theirs.message.content or "")
        assert mine.finish_reason == theirs.finish_reason
        assert [
            (c.id, c.function.name, c.function.arguments) for c in mine.message.tool_calls or ()
        ] == [
            (c.id, c.function.name, c.function.arguments)  # type: ignore[union-attr]
            for c in theirs.message.tool_calls or ()
        ]
    assert (made.usage == whole.usage) is has_usage


@given(_answers(), st.data())
def test_resuming_anywhere_gives_the_same_blocks(
    answers: tuple[list[str], list[tuple[int, str]]], data: st.DataObject
) -> None:
    texts, pieces = answers
    job = shown_job(texts, tool_format="hermes", stream_options={"include_usage": True})
    events = native_events(pieces)
    whole = _blocks(ChatFold(job), job, events)
    numbered = [(position, seq) for position, block in enumerate(whole) if (seq := _id(block))]
    position, cursor = data.draw(st.sampled_from(numbered))

    resumed = _blocks(ChatFold(job), job, events, cursor)

    assert [_data(block) for block in resumed] == [_data(b) for b in whole[position + 1 :]]


def test_a_gap_that_goes_on_is_text_and_one_that_takes_back_is_an_error() -> None:
    job = shown_job(["hello world"])
    events = native_events([(0, "hello")])[:2]
    goes_on = make_event(1_000_000, EventType.GAP, **{"from": 1, "to": 9, "text": "hello wor"})
    takes_back = make_event(1_000_000, EventType.GAP, **{"from": 1, "to": 9, "text": "help"})

    good = _blocks(ChatFold(job), job, [*events, goes_on])
    bad = _blocks(ChatFold(job), job, [*events, takes_back])

    assert _data(good[-1])["choices"][0]["delta"] == {"content": " wor"}
    assert _data(bad[-2])["error"]["code"] == "stream_expired"
    assert _data(bad[-1]) is None


def test_a_cursor_behind_lost_history_is_an_error() -> None:
    job = shown_job(["hello world"])
    gap = make_event(1_000_000, EventType.GAP, **{"from": 1, "to": 9, "text": "hello wor"})

    [error, done] = _blocks(ChatFold(job), job, [gap], cursor=3)

    assert _data(error)["error"]["code"] == "stream_expired"
    assert _data(done) is None


@pytest.mark.parametrize("fold", [ChatFold, CompletionFold])
def test_a_failed_job_ends_its_stream_with_an_error(fold: type[ChatFold | CompletionFold]) -> None:
    job = shown_job([""])
    job.row.update(status="failed", reason="engine_error", error_code="engine_error", output=[])

    [error, done] = _blocks(fold(job), job, [make_event(1, EventType.DONE)])

    assert _data(error)["error"]["code"] == "engine_error"
    assert _data(done) is None
    with pytest.raises(EngineFailed):
        chat_completion(job)


def test_a_completion_echoes_its_prompt_once() -> None:
    job = shown_job(["x"], prompt="ask: ", echo=True)

    chunks = [
        _data(block) for block in _blocks(CompletionFold(job), job, native_events([(0, "x")]))
    ]

    text = "".join(choice["text"] for chunk in chunks if chunk for choice in chunk["choices"])
    assert text == text_completion(job)["choices"][0]["text"] == "ask: x"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("engine_error", 500),
        ("invalid_prompt", 400),
        ("invalid_grammar", 400),
        ("worker_lost", 503),
    ],
)
def test_a_failure_has_the_status_of_its_cause(code: str, status: int) -> None:
    job = shown_job([])
    job.row.update(status="failed", reason="engine_error", error_code=code, output=[])

    with pytest.raises(ServiceError) as error:
        chat_completion(job)

    assert status_of(error.value)[0] == status
