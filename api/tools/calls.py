"""Whole answers taken apart into text and calls."""

from __future__ import annotations

from dataclasses import dataclass
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


def split_answer(
    text: str, tool_format: str | None, *, job_id: UUID, choice: int
) -> tuple[str, list[Call]]:
    """The text for the user, and the calls; all is text where nothing could be called."""
    if tool_format is None:
        return text, []
    parser = ToolCallParser(format_named(tool_format))
    pieces: list[Piece] = [*parser.feed(text), *parser.end()]
    calls: list[Call] = []
    for piece in pieces:
        match piece:
            case CallBegin(index, name):
                calls.append(Call(call_id(job_id, choice, index), name))
            case CallArguments(index, more):
                calls[index].arguments += more
    return "".join(piece.text for piece in pieces if isinstance(piece, TextPiece)), calls
