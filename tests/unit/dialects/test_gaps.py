"""What chat and text completions make of history that was lost, and of answers that were cut."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from api.dialects.answers import finish_reason
from api.dialects.chat import ChatFold, chat_completion
from api.dialects.completion import CompletionFold
from api.dialects.fold import Fold, Frame
from tasks.errors import StreamExpired
from tasks.events import Event, EventType, make_event
from tests.unit.dialects.test_chat import CALL, shown_job

FOLDS = (ChatFold, CompletionFold)


def _gap(seq: int, text: str) -> Event:
    return make_event(seq, EventType.GAP, **{"from": 1, "to": seq, "text": text})


def _token(seq: int, text: str) -> Event:
    return make_event(seq, EventType.TOKEN, index=0, text=text, token_ids=[seq])


def _texts(frames: list[Frame]) -> list[str]:
    """Of each frame that has any."""
    assert all(isinstance(frame.data, bytes) for frame in frames)
    choices = [choice for frame in frames for choice in orjson.loads(frame.data)["choices"]]  # type: ignore[arg-type]
    texts = [choice.get("text") or choice.get("delta", {}).get("content") for choice in choices]
    return [text for text in texts if text]


@pytest.mark.parametrize("kind", FOLDS)
def test_each_gap_adds_what_the_ones_before_it_did_not_say(kind: type[Any]) -> None:
    fold: Fold = kind(shown_job(["one two three four"]))

    frames = fold.feed(_gap(10, "one "))
    frames += fold.feed(_gap(20, "one two "))
    frames += fold.feed(_token(21, "three "))
    frames += fold.feed(_gap(30, "one two three four"))

    assert _texts(frames) == ["one ", "two ", "three ", "four"]


@pytest.mark.parametrize("kind", FOLDS)
def test_a_gap_that_takes_text_back_ends_the_stream(kind: type[Any]) -> None:
    fold: Fold = kind(shown_job(["one two"]))
    fold.feed(_gap(10, "one two "))

    with pytest.raises(StreamExpired):
        fold.feed(_gap(20, "one 2 "))


@pytest.mark.parametrize("kind", FOLDS)
def test_only_the_last_frame_of_an_event_is_a_place_to_resume_at(kind: type[Any]) -> None:
    """A client that took the number of an earlier one would miss those behind it."""
    fold: Fold = kind(shown_job(["one"], stream_options={"include_usage": True}))

    of_gap = fold.feed(_gap(10, "one"))
    of_end = fold.finish(11, shown_job(["one"]).row)

    for frames in (of_gap, of_end):
        assert [frame.has_id for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert len(of_end) == 2


def test_a_job_that_ends_before_it_says_anything_is_resumed_behind_its_end() -> None:
    fold = ChatFold(shown_job([""]))

    role, last = fold.finish(2, shown_job([""]).row)

    assert (role.has_id, last.has_id) == (False, True)


@pytest.mark.parametrize(
    ("reason", "has_calls", "shown"),
    [
        ("stop", False, "stop"),
        ("stop", True, "tool_calls"),
        ("length", False, "length"),
        ("length", True, "length"),
        ("budget_exhausted", True, "length"),
        ("deadline_exceeded", True, "length"),
        ("cancelled", True, "length"),
    ],
)
def test_why_a_choice_ended(reason: str, has_calls: bool, shown: str) -> None:
    assert finish_reason({"finish_reason": reason}, has_calls=has_calls) == shown


def test_calls_of_an_answer_that_was_cut_end_by_its_length() -> None:
    job = shown_job([CALL], tool_format="hermes")
    job.row["output"][0]["finish_reason"] = "length"

    whole = chat_completion(job)["choices"][0]
    *_, last = ChatFold(job).finish(9, job.row)

    assert whole["message"]["tool_calls"]
    assert whole["finish_reason"] == "length"
    assert isinstance(last.data, bytes)
    assert orjson.loads(last.data)["choices"][0]["finish_reason"] == "length"
