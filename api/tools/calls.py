"""Whole answers taken apart into text and calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from api.tools.formats import format_named
from api.tools.parser import CallArguments, CallBegin, Piece, TextPiece, ToolCallParser


@dataclass(slots=True)
class Call:
    """A function the model calls, and the arguments as text of JSON."""

    id: str
    name: str
    arguments: str = ""

    def as_object(self) -> dict[str, Any]:
        """As chat completions and the job object show it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


def call_id(job_id: UUID, choice: int, index: int) -> str:
    """The same in every replay: made from the job, the choice and the call's place in it."""
    return f"call_{job_id.hex[-20:]}{choice:02x}{index:02x}"


@dataclass(slots=True)
class Answer:
    """One choice taken apart."""

    text: str  # for the user
    calls: list[Call] = field(default_factory=list)
    is_cut_in_call: bool = False  # the last call, if it is there, has no end
    text_ranges: list[tuple[int, int]] = field(default_factory=list)  # where `text` stood


def is_cut(choice: Mapping[str, Any], request: Mapping[str, Any] | None = None) -> bool:
    """Whether something else than the model's own end may have ended a choice: half a mark at its
    end is to be one then. Without the request nobody knows of its stop strings.
    """
    return choice["finish_reason"] != "stop" or bool(request and request.get("stop"))


def split_answer(
    choice: Mapping[str, Any],
    tool_format: str | None,
    *,
    job_id: UUID,
    request: Mapping[str, Any] | None = None,
) -> Answer:
    """The text for the user, and the calls; all is text where nothing could be called."""
    if tool_format is None:
        return Answer(choice["text"])
    parser = ToolCallParser(format_named(tool_format))
    answer = Answer("")
    for piece in [*parser.feed(choice["text"]), *parser.end(is_cut=is_cut(choice, request))]:
        _add(answer, piece, job_id, choice["index"])
    answer.is_cut_in_call = parser.is_cut_in_call
    return answer


def _add(answer: Answer, piece: Piece, job_id: UUID, choice: int) -> None:
    match piece:
        case TextPiece(text, at):
            answer.text += text
            answer.text_ranges.append((at, at + len(text)))
        case CallBegin(index, name):
            answer.calls.append(Call(call_id(job_id, choice, index), name))
        case CallArguments(index, more):
            answer.calls[index].arguments += more
