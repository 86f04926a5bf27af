"""What clients see of an answer that was cut inside of a call: nothing of the marks, and of the
call what there is once its name is whole.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.dialects.chat import ChatFold, chat_completion
from api.dialects.fold import Fold, ShownJob
from api.dialects.response import ResponseFold, response_object
from api.job_view import job_object
from api.prompts.vocabulary import Vocabulary
from api.streams.encoder import DialectEncoder, join_bytes
from tasks.events import Event, EventType, make_event
from tests.support.tiny_tokenizer import tiny_tokenizer
from tests.unit.dialects.test_chat import shown_job

TOKENIZER = tiny_tokenizer()
VOCABULARY = Vocabulary(TOKENIZER, json.loads(TOKENIZER.to_str()))
CALL = '<tool_call>{"name": "get", "arguments": {"city": "Zürich"}}</tool_call>'
TEXTS = [CALL, f"{CALL}\n{CALL}", f"hi ü {CALL}", f"{CALL} and so <b>"]
ARGUMENTS = '{"city": "Zürich"}'


@st.composite
def cut_answers(draw: st.DrawFn) -> tuple[str, list[Event], ShownJob]:
    """A text, token events of its beginning, and the job that was cut there."""
    text = draw(st.sampled_from(TEXTS))
    ids, texts = _tokens_of(text)
    num = draw(st.integers(0, len(ids) - 1))
    ids, texts = ids[:num], texts[: num + 1]
    events = [make_event(1, EventType.STARTED, attempt=1, model="demo")]
    values = [[-float(n), []] for n in range(len(ids))]
    for n, token_id in enumerate(ids):
        fields = {"token_ids": [token_id], "logprobs": [values[n]]}
        more = texts[n + 1][len(texts[n]) :]
        events.append(make_event(n + 2, EventType.TOKEN, index=0, text=more, **fields))
    events.append(make_event(len(ids) + 2, EventType.DONE))
    job = shown_job([texts[-1]], tool_format="hermes", input="x", logprobs=True)
    job.row["output"][0] |= {
        "finish_reason": "length",
        "logprobs": {"token_ids": ids, "values": values},
    }
    job.row.update(status="incomplete", reason="max_output_tokens")
    return texts[-1], events, ShownJob(_with_more(job.row), job.request, VOCABULARY)


@cache
def _tokens_of(text: str) -> tuple[list[int], list[str]]:
    """Tokens, and the text before each and behind all. As the engine does: what is no whole
    character waits, and comes with the next, or never.
    """
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    texts = (TOKENIZER.decode(ids[:n]) for n in range(len(ids) + 1))
    return ids, [text.rstrip("\N{REPLACEMENT CHARACTER}") for text in texts]


def _with_more(row: dict[str, Any]) -> dict[str, Any]:
    at = row["created_at"]
    times = {"started_at": at, "finished_at": at, "deadline_at": at}
    return row | times | {"is_background": False, "metadata": {}, "attempt": 1}


def _stream(fold: Fold, job: ShownJob, events: list[Event]) -> list[Any]:
    encoder = DialectEncoder(fold, -1)
    data = encoder.begin() + join_bytes(encoder.encode(events, job.row))
    lines = [line for line in data.split(b"\n") if line.startswith(b"data: {")]
    return [json.loads(line.removeprefix(b"data: ")) for line in lines]


def _check(raw: str, text: str | None, calls: list[dict[str, Any]]) -> None:
    """By what stood before the cut."""
    before, _, _ = raw.partition("<tool_call>")
    behind = raw.rpartition("</tool_call>")[2] if "</tool_call>" in raw else ""
    allowed = before + (behind if "<tool" not in behind else "")
    assert allowed.startswith((text or "").rstrip("<"))
    assert "tool" not in (text or "")
    assert "{" not in (text or "")
    assert len(calls) == raw.count('"get"')
    for call in calls:
        assert call["name"] == "get"
        assert ARGUMENTS.startswith(call["arguments"])
    assert all(call["arguments"] == ARGUMENTS for call in calls[:-1])


@given(cut_answers())
def test_chat_shows_no_markup_and_ends_for_length(
    answer: tuple[str, list[Event], ShownJob],
) -> None:
    raw, events, job = answer

    [choice] = chat_completion(job)["choices"]
    deltas = [chunk["choices"][0] for chunk in _stream(ChatFold(job), job, events)]

    message = choice["message"]
    calls = [call["function"] for call in message.get("tool_calls", ())]
    _check(raw, message["content"], calls)
    assert choice["finish_reason"] == deltas[-1]["finish_reason"] == "length"
    assert "".join(d["delta"].get("content") or "" for d in deltas) == (message["content"] or "")
    streamed = [call for d in deltas for call in d["delta"].get("tool_calls", ())]
    assert [c["function"]["name"] for c in streamed if "id" in c] == [c["name"] for c in calls]
    assert "".join(c["function"]["arguments"] for c in streamed) == "".join(
        c["arguments"] for c in calls
    )


@given(cut_answers())
def test_log_probabilities_are_those_of_the_text_alone(
    answer: tuple[str, list[Event], ShownJob],
) -> None:
    _, events, job = answer

    [choice] = chat_completion(job)["choices"]
    chunks = [chunk["choices"][0] for chunk in _stream(ChatFold(job), job, events)]

    entries = (choice["logprobs"] or {"content": []})["content"]
    text = b"".join(bytes(entry["bytes"]) for entry in entries).decode(errors="ignore")
    assert text == (choice["message"]["content"] or "")
    streamed = [entry for c in chunks if c["logprobs"] for entry in c["logprobs"]["content"]]
    assert streamed == entries


@given(cut_answers())
def test_responses_show_no_markup_and_an_incomplete_item(
    answer: tuple[str, list[Event], ShownJob],
) -> None:
    raw, events, job = answer

    response = response_object(job)
    last = _stream(ResponseFold(job), job, events)[-1]

    assert last["response"] == response
    assert response["status"] == "incomplete"
    items = response["output"]
    text = "".join(i["content"][0]["text"] for i in items if i["type"] == "message")
    calls = [item for item in items if item["type"] == "function_call"]
    _check(raw, text, calls)
    for call in calls:
        is_whole = call["arguments"] == ARGUMENTS
        assert call["status"] == ("completed" if is_whole else "incomplete")


@given(cut_answers())
def test_jobs_show_no_markup(answer: tuple[str, list[Event], ShownJob]) -> None:
    raw, _, job = answer

    [choice] = job_object(job.row | {"error_retryable": None})["output"]

    _check(raw, choice["text"], [call["function"] for call in choice["tool_calls"]])


@pytest.mark.parametrize(
    ("text", "content", "num_calls", "reason"),
    [
        (CALL[:40], None, 1, "length"),  # the stop string was in the call
        (CALL[:15], "", 0, "length"),
        (CALL.removesuffix("</tool_call>"), None, 1, "tool_calls"),
        ("hi ", "hi ", 0, "stop"),
    ],
)
def test_a_call_that_a_stop_string_cuts_is_none_to_run(
    text: str, content: str | None, num_calls: int, reason: str
) -> None:
    job = shown_job([text], tool_format="hermes", stop=["x"])
    pieces = [make_event(2, EventType.TOKEN, index=0, text=text, token_ids=[1])]

    [choice] = chat_completion(job)["choices"]
    chunks = _stream(ChatFold(job), job, [*pieces, make_event(3, EventType.DONE)])

    assert choice["message"]["content"] == content
    assert len(choice["message"].get("tool_calls", ())) == num_calls
    assert choice["finish_reason"] == reason
    assert chunks[-1]["choices"][0]["finish_reason"] == reason


@pytest.mark.parametrize("reason", ["length", "deadline", "budget", None])
def test_whatever_cuts_a_call_is_a_length_of_each_choice_by_itself(reason: str | None) -> None:
    job = shown_job([CALL[:40], CALL], tool_format="hermes")
    job.row["output"][0]["finish_reason"] = reason

    cut, whole = chat_completion(job)["choices"]

    assert (cut["finish_reason"], whole["finish_reason"]) == ("length", "tool_calls")
    assert cut["message"]["tool_calls"][0]["function"]["name"] == "get"
    assert cut["message"]["content"] is None
