"""Every key and value of what the dialects show, by jobs that have some of everything."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, cast

import orjson
import pytest

from api.dialects.answers import completion_usage, failure_of
from api.dialects.chat import ChatFold, chat_completion
from api.dialects.chat_logprobs import choice_logprobs
from api.dialects.completion import CompletionFold, text_completion
from api.dialects.fold import Fold, Frame, ShownJob
from api.dialects.response import ResponseFold, response_object
from api.dialects.response_items import ItemBuilder
from api.json_pieces import LaterList
from api.prompts.vocabulary import Vocabulary
from api.tools.parser import TextPiece
from tasks.errors import EngineFailed, InternalError, JobCancelled
from tasks.events import EventType, make_event
from tests.support.tiny_tokenizer import tiny_tokenizer
from tests.unit.dialects.test_chat import CALL, JOB_ID, native_events, shown_job

CREATED = 1_767_225_600  # 2026-01-01
TOKENIZER = tiny_tokenizer()
VOCABULARY = Vocabulary(TOKENIZER, json.loads(TOKENIZER.to_str()))
HI = [TOKENIZER.token_to_id(letter) for letter in "hi"]
END = TOKENIZER.token_to_id("<|end|>")
# [log probability, the likeliest]: the second token has no others.
VALUES: list[list[Any]] = [[-0.5, [[HI[0], -0.5], [HI[1], -1.0]]], [-0.25, []], [-2.0, []]]
LOGPROBS: dict[str, Any] = {"token_ids": [*HI, END], "values": VALUES}
EXTENSION = {
    "job_id": "job_" + JOB_ID.hex,
    "status": "completed",
    "reason": None,
    "cost_micros": 11,
    "currency": "USD",
    "model_requested": "demo",
}
USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 9,
    "total_tokens": 14,
    "prompt_tokens_details": {"cached_tokens": 2, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
CHAT = {
    "id": "chatcmpl-" + JOB_ID.hex,
    "created": CREATED,
    "model": "demo",
    "service_tier": "default",
    "system_fingerprint": None,
}
COMPLETION = {
    "id": "cmpl-" + JOB_ID.hex,
    "object": "text_completion",
    "created": CREATED,
    "model": "demo",
    "system_fingerprint": None,
}
ENTRIES: list[dict[str, Any]] = [
    {
        "token": "h",
        "logprob": -0.5,
        "bytes": [104],
        "top_logprobs": [
            {"token": "h", "logprob": -0.5, "bytes": [104]},
            {"token": "i", "logprob": -1.0, "bytes": [105]},
        ],
    },
    {"token": "i", "logprob": -0.25, "bytes": [105], "top_logprobs": []},
]
OLD_LOGPROBS: dict[str, Any] = {
    "tokens": ["h", "i"],
    "token_logprobs": [-0.5, -0.25],
    "top_logprobs": [{"h": -0.5, "i": -1.0}, {"i": -0.25}],
    "text_offset": [5, 6],
}


def _job(texts: list[str], **request: Any) -> ShownJob:
    job = shown_job(texts, **request)
    job.row.update(is_stored=True, is_background=False, metadata={"a": "b"})
    job.row.update(finished_at=datetime(2026, 1, 1, 0, 0, 9, tzinfo=UTC))
    return ShownJob(job.row, job.request, VOCABULARY)


def _token(seq: int, text: str, *, index: int = 0, **fields: Any) -> Any:
    return make_event(seq, EventType.TOKEN, index=index, text=text, **fields)


def _chat_choice(
    index: int, delta: dict[str, Any], *, logprobs: Any = None, reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _shown(frames: list[Frame]) -> list[tuple[int, Any, bool]]:
    assert all(frame.event is None for frame in frames)
    return [(f.seq, orjson.loads(cast(bytes, f.data)), f.has_id) for f in frames]


# Chat completions


def test_a_chat_completion() -> None:
    job = _job([f"x {CALL}", "hi", CALL], tool_format="hermes")
    job.row["output"][1] |= {"finish_reason": "length", "logprobs": LOGPROBS}

    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": "b"}'}}
    message: dict[str, Any] = {"role": "assistant", "refusal": None, "annotations": []}
    ids = [f"call_{JOB_ID.hex[-20:]}{choice:02x}00" for choice in (0, 2)]
    assert chat_completion(job) == {
        **CHAT,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {**message, "content": "x ", "tool_calls": [call | {"id": ids[0]}]},
                "logprobs": None,
                "finish_reason": "tool_calls",
            },
            {
                "index": 1,
                "message": {**message, "content": "hi"},
                "logprobs": {"content": ENTRIES, "refusal": None},
                "finish_reason": "length",
            },
            {
                "index": 2,
                "message": {**message, "content": None, "tool_calls": [call | {"id": ids[1]}]},
                "logprobs": None,
                "finish_reason": "tool_calls",
            },
        ],
        "usage": USAGE,
        "millrace": EXTENSION,
    }


def test_an_empty_answer_is_an_empty_text_or_no_item() -> None:
    job = _job([""])

    [choice] = chat_completion(job)["choices"]

    assert choice["message"]["content"] == ""
    assert response_object(job)["output"] == []


def test_a_response_that_ended_before_it_began_has_no_items() -> None:
    job = _job(["x"])
    job.row.update(status="cancelled", output=None)

    assert response_object(job)["output"] == []


def test_text_behind_a_call_is_a_message_of_its_own() -> None:
    job = _job([f"{CALL}x"], tool_format="hermes")

    assert response_object(job)["output"] == [_call(0, 0), _message(1, "x")]


def test_log_probabilities_of_a_whole_response_are_read_while_it_is_sent() -> None:
    job = _job(["hi"])
    job.row["output"][0]["logprobs"] = True
    fold = ResponseFold(job)
    fold.feed(make_event(1, EventType.STARTED, attempt=1))
    fold.feed(_token(2, "hi"))

    *_, last = fold.finish(3, job.row)

    [begin, later, end] = last.data
    assert isinstance(later, LaterList)
    assert _read(later) == ENTRIES
    whole = orjson.loads(cast(bytes, begin) + orjson.dumps(ENTRIES) + cast(bytes, end))
    assert whole["response"]["output"] == [_message(0, "hi", ENTRIES)]


def test_half_a_call_at_the_end_is_text() -> None:
    job = _job(["a <tool_"], tool_format="hermes")
    fold = ResponseFold(job)
    fold.feed(make_event(1, EventType.STARTED, attempt=1))
    fold.feed(_token(2, "a <tool_"))

    *_, last = _fields(fold.finish(3, job.row))

    assert last["response"]["output"] == response_object(job)["output"] == [_message(0, "a <tool_")]


def test_chunks_of_a_chat() -> None:
    job = _job(["hi", "yo"], stream_options={"include_usage": True})
    fold = ChatFold(job)

    frames = [*fold.begin(), *fold.feed(make_event(1, EventType.STARTED, attempt=1))]
    frames += fold.feed(_token(2, "h", token_ids=HI[:1], logprobs=VALUES[:1]))
    frames += fold.feed(_token(3, "", index=1, token_ids=[1]))  # half a character
    frames += fold.feed(_token(4, "", token_ids=HI[1:], logprobs=VALUES[1:2]))  # held back
    frames += fold.feed(_token(5, "i", token_ids=[END], logprobs=VALUES[2:]))
    frames += fold.feed(make_event(6, EventType.STARTED, attempt=2))
    frames += fold.feed(make_event(7, EventType.GAP, texts=["hi", "yo"]))
    frames += fold.feed(make_event(8, EventType.GAP, texts=["hi", "yo"]))
    frames += fold.finish(9, job.row)

    chunk = {**CHAT, "object": "chat.completion.chunk", "usage": None}
    role = {"role": "assistant", "content": "", "refusal": None}
    asked = {"content": ENTRIES[:1], "refusal": None}
    late = {"content": ENTRIES[1:], "refusal": None}
    news = [_chat_choice(1, {"content": "yo"})]
    ends = [_chat_choice(index, {}, reason="stop") for index in (0, 1)]
    assert _shown(frames) == [
        (1, {**chunk, "choices": [_chat_choice(0, role), _chat_choice(1, role)]}, True),
        (2, {**chunk, "choices": [_chat_choice(0, {"content": "h"}, logprobs=asked)]}, True),
        (5, {**chunk, "choices": [_chat_choice(0, {"content": "i"}, logprobs=late)]}, True),
        (7, {**chunk, "choices": news}, True),
        (9, {**chunk, "choices": ends, "millrace": EXTENSION}, False),
        (9, {**chunk, "choices": [], "usage": USAGE}, True),
    ]


def test_chunks_of_a_call() -> None:
    job = _job([CALL], tool_format="hermes")
    fold = ChatFold(job)

    fold.feed(make_event(1, EventType.STARTED, attempt=1))
    frames = [frame for at, c in enumerate(CALL) for frame in fold.feed(_token(2 + at, c))]
    frames += fold.finish(99, job.row)

    chunks = [data for _, data, _ in _shown(frames)]
    [first, *others] = [d for c in chunks for d in c["choices"][0]["delta"].get("tool_calls", ())]
    assert first == {
        "index": 0,
        "id": f"call_{JOB_ID.hex[-20:]}0000",
        "type": "function",
        "function": {"name": "f", "arguments": "{"},
    }
    assert others
    assert all(set(other) == {"index", "function"} for other in others)
    assert "".join(other["function"]["arguments"] for other in others) == '"a": "b"}'
    assert all("usage" not in chunk for chunk in chunks)
    assert chunks[-1]["choices"] == [_chat_choice(0, {}, reason="tool_calls")]


def test_an_error_is_a_chunk_that_no_client_resumes_after() -> None:
    job = _job([])
    job.row.update(status="failed", reason="engine_error", error_code="engine_error")
    job.row["error_message"] = "It broke."

    for fold in (ChatFold(job), CompletionFold(job)):
        [frame] = fold.finish(7, job.row)

        with pytest.raises(EngineFailed):
            chat_completion(job)
        with pytest.raises(EngineFailed):
            text_completion(job)
        assert (frame.seq, frame.has_id) == (7, False)
        assert orjson.loads(cast(bytes, frame.data)) == {
            "error": {
                "message": "It broke.",
                "type": "server_error",
                "param": None,
                "code": "engine_error",
            }
        }


# Text completions


@pytest.mark.parametrize("prompt", ["ask: ", ["ask: "]])
def test_a_completion_with_its_prompt(prompt: Any) -> None:
    job = _job(["hi", ""], prompt=prompt, echo=True)
    job.row["output"][0]["logprobs"] = LOGPROBS
    job.row["output"][1]["finish_reason"] = "length"

    choice = {"index": 0, "text": "ask: hi", "logprobs": OLD_LOGPROBS, "finish_reason": "stop"}
    empty = {"index": 1, "text": "ask: ", "logprobs": None, "finish_reason": "length"}
    assert text_completion(job) == {
        **COMPLETION,
        "choices": [choice, empty],
        "usage": USAGE,
        "millrace": EXTENSION,
    }


@pytest.mark.parametrize("request_", [{"prompt": [1, 2]}, {"prompt": "ask: "}, {"prompt": [[1]]}])
def test_a_completion_without_its_prompt(request_: dict[str, Any]) -> None:
    job = _job(["hi"], **request_)

    [choice] = text_completion(job)["choices"]
    fold = CompletionFold(job)
    frames = fold.feed(make_event(1, EventType.STARTED, attempt=1))
    frames += fold.feed(make_event(2, EventType.STARTED, attempt=2))

    assert choice == {"index": 0, "text": "hi", "logprobs": None, "finish_reason": "stop"}
    assert frames == []


def test_chunks_of_a_completion() -> None:
    job = _job(["hi", "yo"], prompt="ask: ", echo=True)
    fold = CompletionFold(job)

    frames = [*fold.begin(), *fold.feed(make_event(1, EventType.STARTED, attempt=1))]
    frames += fold.feed(_token(2, "h", token_ids=HI[:1], logprobs=VALUES[:1]))
    frames += fold.feed(_token(3, "", index=1, token_ids=[1]))
    frames += fold.feed(_token(4, "yo", index=1, token_ids=[1]))
    frames += fold.feed(_token(5, "i", token_ids=HI[1:], logprobs=VALUES[1:2]))
    frames += fold.finish(6, job.row)

    def choice(
        index: int, text: str, *, logprobs: Any = None, reason: str | None = None
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def logprobs(at: int, *, offset: int) -> dict[str, Any]:
        lists = {name: values[at : at + 1] for name, values in OLD_LOGPROBS.items()}
        return lists | {"text_offset": [offset]}

    ends = [choice(index, "", reason="stop") for index in (0, 1)]
    assert _shown(frames) == [
        (1, {**COMPLETION, "choices": [choice(0, "ask: "), choice(1, "ask: ")]}, True),
        (2, {**COMPLETION, "choices": [choice(0, "h", logprobs=logprobs(0, offset=5))]}, True),
        (4, {**COMPLETION, "choices": [choice(1, "yo")]}, True),
        (5, {**COMPLETION, "choices": [choice(0, "i", logprobs=logprobs(1, offset=6))]}, True),
        (6, {**COMPLETION, "choices": ends, "millrace": EXTENSION}, True),
    ]


def test_log_probabilities_that_are_read_later_are_the_same() -> None:
    job = _job(["hi"], prompt="ask: ", echo=True)
    job.row["output"][0]["logprobs"] = True

    lists = text_completion(job)["choices"][0]["logprobs"]
    content = chat_completion(job)["choices"][0]["logprobs"]["content"]

    assert {name: _read(later) for name, later in lists.items()} == OLD_LOGPROBS
    assert _read(content) == ENTRIES


def _read(later: LaterList) -> list[Any]:
    """In two parts."""
    [part] = later.parts
    assert part.choice == 0
    entries = part.entries()
    first = entries(LOGPROBS["token_ids"][:1], VALUES[:1])
    return [*first, *entries(LOGPROBS["token_ids"][1:], VALUES[1:])]


def test_log_probabilities_without_a_vocabulary_have_no_texts() -> None:
    job = _job(["hi"])
    job = ShownJob(job.row, job.request)
    job.row["output"][0]["logprobs"] = LOGPROBS

    entries = choice_logprobs(None, job.row["output"][0])
    lists = text_completion(job)["choices"][0]["logprobs"]

    assert [(entry["token"], entry["bytes"]) for entry in entries] == [("", [])] * 3  # type: ignore[union-attr]
    assert lists["tokens"] == ["", "", ""]
    assert choice_logprobs(None, {"index": 0}) == []


# Responses

OBJECT: dict[str, Any] = {
    "id": "resp_" + JOB_ID.hex,
    "object": "response",
    "created_at": CREATED,
    "background": False,
    "error": None,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {"a": "b"},
    "model": "demo",
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
WAITING = OBJECT | {
    "completed_at": None,
    "status": "queued",
    "incomplete_details": None,
    "output": [],
    "usage": None,
}
FINISHED = OBJECT | {
    "completed_at": CREATED + 9,
    "status": "completed",
    "incomplete_details": None,
    "usage": {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 14,
    },
    "millrace": EXTENSION,
}


def _message(number: int, text: str, logprobs: Any = (), **fields: Any) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}
    return {
        "id": f"msg_{JOB_ID.hex}{number:02x}",
        "status": "completed",
        "type": "message",
        "role": "assistant",
        "content": [part],
        **fields,
    }


def _call(number: int, index: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"fc_{JOB_ID.hex}{number:02x}",
        "status": "completed",
        "type": "function_call",
        "call_id": f"call_{JOB_ID.hex[-20:]}00{index:02x}",
        "name": "f",
        "arguments": '{"a": "b"}',
        **fields,
    }


def test_a_response_that_waits() -> None:
    job = _job(["x"])
    job.row["status"] = "queued"

    assert response_object(job) == WAITING


def test_a_response() -> None:
    job = _job([f"x{CALL}{CALL}"], tool_format="hermes")

    items = [_message(0, "x"), _call(1, 0), _call(2, 1)]
    assert response_object(job) == FINISHED | {"output": items}


def test_a_response_says_what_was_asked_for() -> None:
    asked = {
        "instructions": "Be short.",
        "max_output_tokens": 9,
        "max_tool_calls": 3,
        "parallel_tool_calls": False,
        "previous_response_id": "resp_1",
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "store": False,
        "temperature": 0.0,
        "text": {"format": {"type": "json_object"}, "verbosity": None},
        "tool_choice": "required",
        "tools": [{"type": "function", "name": "f", "strict": True}],
        "top_logprobs": 2,
        "top_p": 0.5,
        "truncation": "auto",
        "user": "u",
    }
    job = _job(["x"], **asked)
    job.row.update(status="queued", is_background=True)

    tools = [{"type": "function", "name": "f", "strict": True, "parameters": None}]
    text = {"format": {"type": "json_object"}, "verbosity": "medium"}
    said = {**asked, "tools": tools, "text": text, "background": True}
    assert response_object(job) == WAITING | said


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("incomplete", {"incomplete_details": {"reason": "max_output_tokens"}}),
        ("cancelled", {}),
        ("failed", {"error": {"code": "server_error", "message": "It broke."}}),
    ],
)
def test_a_response_that_was_cut(status: str, said: dict[str, Any]) -> None:
    job = _job(["hi"])
    job.row.update(status=status, reason="why", cached_tokens=None, output_tokens=None)
    job.row.update(error_code="engine_error", error_message="It broke.")

    whole = response_object(job)

    assert whole == FINISHED | said | {
        "status": status,
        "completed_at": None,
        "output": [_message(0, "hi", status="incomplete")],
        "usage": {
            "input_tokens": 5,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 5,
        },
        "millrace": EXTENSION | {"status": status, "reason": "why"},
    }


def test_events_of_a_response() -> None:
    job = _job(["hi"])
    job.row["output"][0]["logprobs"] = LOGPROBS
    fold = ResponseFold(job)

    frames = [*fold.begin(), *fold.feed(make_event(1, EventType.STARTED, attempt=1))]
    frames += fold.feed(_token(2, "", token_ids=HI[:1], logprobs=VALUES[:1]))
    frames += fold.feed(_token(3, "hi", token_ids=HI[1:], logprobs=VALUES[1:2]))
    frames += fold.feed(_token(4, "", token_ids=[END], logprobs=VALUES[2:]))
    frames += fold.finish(5, job.row)

    item = _message(0, "hi", ENTRIES)
    begun = item | {"status": "in_progress", "content": []}
    empty = item["content"][0] | {"text": "", "logprobs": []}
    at: dict[str, Any] = {"output_index": 0}
    place = at | {"item_id": item["id"], "content_index": 0}
    text = {"text": "hi", "logprobs": ENTRIES}
    expected: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": WAITING}),
        ("response.queued", {"response": WAITING}),
        ("response.in_progress", {"response": WAITING | {"status": "in_progress"}}),
        ("response.output_item.added", at | {"item": begun}),
        ("response.content_part.added", place | {"part": empty}),
        ("response.output_text.delta", place | {"delta": "hi", "logprobs": ENTRIES}),
        ("response.output_text.done", place | text),
        ("response.content_part.done", place | {"part": item["content"][0]}),
        ("response.output_item.done", at | {"item": item}),
        ("response.completed", {"response": FINISHED | {"output": [item]}}),
    ]
    assert _events(frames) == expected


def test_events_of_a_call_behind_a_text() -> None:
    job = _job([f"x{CALL}"], tool_format="hermes")
    fold = ResponseFold(job)

    frames = fold.feed(make_event(1, EventType.STARTED, attempt=1))
    frames += fold.feed(_token(2, f"x{CALL}", token_ids=HI[:1], logprobs=VALUES[:1]))
    frames += fold.finish(3, job.row)

    item, begun = _call(1, 0), _call(1, 0, status="in_progress", arguments="")
    place = {"item_id": item["id"], "output_index": 1}
    arguments = {"arguments": '{"a": "b"}', "name": "f"}
    events = _events(frames)
    text_done = [fields["item"] for kind, fields in events if kind == "response.output_item.done"]
    assert text_done == [_message(0, "x"), item]
    deltas = [f for kind, f in events if kind == "response.function_call_arguments.delta"]
    assert "".join(delta.pop("delta") for delta in deltas) == '{"a": "b"}'
    assert all(delta == place for delta in deltas)
    assert ("response.output_item.added", {"output_index": 1, "item": begun}) in events
    assert ("response.function_call_arguments.done", place | arguments) in events


def test_items_that_are_closed_are_closed_once() -> None:
    items = ItemBuilder(JOB_ID)
    list(items.add(TextPiece("x")))

    assert len(list(items.close("completed"))) == 3
    assert list(items.close("completed")) == []


def _fields(frames: list[Frame]) -> list[Any]:
    return [orjson.loads(cast(bytes, frame.data)) for frame in frames]


def _events(frames: list[Frame]) -> list[tuple[str, dict[str, Any]]]:
    """Each with its number, which is its place."""
    events = []
    for number, frame in enumerate(frames):
        fields = orjson.loads(cast(bytes, frame.data))
        assert (frame.seq, frame.has_id, frame.event) == (number, True, fields.pop("type"))
        assert fields.pop("sequence_number") == number
        events.append((str(frame.event), fields))
    return events


def test_a_gap_before_the_start_begins_a_response() -> None:
    fold = ResponseFold(_job(["hi"]))

    kinds = [frame.event for frame in fold.feed(make_event(9, EventType.GAP, text="hi"))]

    assert "response.in_progress" in kinds
    assert kinds.count("response.output_text.delta") == 1
    assert fold.feed(make_event(10, EventType.STARTED, attempt=2)) == []


def test_an_error_of_a_response_has_the_later_of_both_numbers() -> None:
    fold = ResponseFold(_job(["hi"]))
    fold.begin()

    for seq, number in [(0, 2), (7, 7)]:
        [frame] = fold.failure(seq, EngineFailed("It broke."))

        assert (frame.seq, frame.event, frame.has_id) == (number, "error", False)
        assert orjson.loads(cast(bytes, frame.data)) == {
            "type": "error",
            "code": "engine_error",
            "message": "It broke.",
            "param": None,
            "sequence_number": number,
        }


# What all share


@pytest.mark.parametrize("kind", [ChatFold, CompletionFold, ResponseFold])
def test_events_that_a_dialect_has_no_words_for_are_left_out(kind: type[Any]) -> None:
    fold: Fold = kind(_job(["hi"]))

    assert fold.feed(make_event(1, EventType.QUEUED)) == []


def test_usage_of_a_job_that_counted_nothing() -> None:
    usage = completion_usage({"input_tokens": 5, "output_tokens": None, "cached_tokens": None})

    assert usage["completion_tokens"] == 0
    assert usage["total_tokens"] == 5
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0


def test_why_a_job_has_nothing_to_show() -> None:
    job = _job(["hi"])
    failed = job.row | {"status": "failed", "error_code": "nobody_knows", "error_message": "Oh."}
    cancelled = job.row | {"status": "cancelled", "reason": "cancelled_by_user"}

    assert failure_of(job.row) is None
    assert failure_of(job.row | {"status": "incomplete", "output": []}) is None
    assert failure_of(cancelled) is None  # it had said something
    assert isinstance(failure_of(cancelled | {"output": []}), JobCancelled)
    assert isinstance(failure_of(cancelled | {"output": None}), JobCancelled)
    unknown = failure_of(failed)
    assert isinstance(unknown, InternalError)
    assert unknown.message == "Oh."


@pytest.mark.parametrize(
    ("is_stored", "request_", "shown"),
    [
        (True, {}, True),
        (True, {"store": None}, True),
        (True, {"store": True}, True),
        (True, {"store": False}, False),
        (False, {}, False),
        (False, {"store": True}, False),
    ],
)
def test_whether_a_job_is_shown_later(
    is_stored: bool, request_: dict[str, Any], shown: bool
) -> None:
    assert ShownJob({"is_stored": is_stored}, request_).is_stored is shown


def test_a_job_at_another_time_has_the_same_request_and_vocabulary() -> None:
    job = _job(["hi"], user="u")

    later = job.with_row({**job.row, "status": "queued"})

    assert (later.request, later.vocabulary) == (job.request, VOCABULARY)
    assert later.row["status"] == "queued"


def test_streams_say_nothing_before_their_jobs_start() -> None:
    job = _job(["hi"])

    assert ChatFold(job).begin() == CompletionFold(job).begin() == []
    assert ChatFold(job).feed(native_events([])[0])[0].seq == 1
