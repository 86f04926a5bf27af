"""A choice of a chat whose model may call something: its text on the way to deltas of either."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

from api.dialects.answers import finish_reason
from api.dialects.chat_logprobs import token_logprobs
from api.dialects.fold import ShownJob
from api.dialects.text_tokens import Range, TextToken, within
from api.tools.calls import call_id, is_cut
from api.tools.formats import format_named
from api.tools.parser import CallArguments, CallBegin, Piece, TextPiece, ToolCallParser

Delta = tuple[dict[str, Any], dict[str, Any] | None]  # and the log probabilities of its text


class ChoiceCalls:
    """One choice. Feed it texts, each behind its tokens where they are shown, then end it once."""

    def __init__(self, job: ShownJob, tool_format: str, index: int) -> None:
        self._job = job
        self._index = index
        self._parser = ToolCallParser(format_named(tool_format))
        self._tokens: deque[TextToken] = deque()  # where text and calls aren't told apart yet
        self._ranges: list[Range] = []  # of texts whose tokens may still be to come
        self._has_calls = False

    def add_tokens(self, tokens: Sequence[TextToken]) -> None:
        """The tokens of the next text."""
        self._tokens += tokens

    def feed(self, text: str) -> Delta:
        """What this text settles."""
        delta = self._of_pieces(self._parser.feed(text))
        return delta, self._logprobs(self._parser.num_settled)

    def end(self, choice: dict[str, Any]) -> Delta:
        """What the end of the choice settles."""
        delta = self._of_pieces(self._parser.end(is_cut=is_cut(choice, self._job.request)))
        return delta, self._logprobs(sys.maxsize)

    def finish_reason(self, choice: dict[str, Any]) -> str:
        """Of the choice that has ended."""
        return finish_reason(
            choice, has_calls=self._has_calls, is_cut_in_call=self._parser.is_cut_in_call
        )

    def _logprobs(self, num_settled: int) -> dict[str, Any] | None:
        settled = []
        while self._tokens and self._tokens[0].offset < num_settled:
            settled.append(self._tokens.popleft())
        shown = within(settled, self._ranges)
        self._ranges = self._ranges[-1:]  # half a character may still be looked for there
        return shown_logprobs(self._job, shown)

    def _of_pieces(self, pieces: list[Piece]) -> dict[str, Any]:
        text = ""
        calls: dict[int, dict[str, Any]] = {}
        for piece in pieces:
            match piece:
                case TextPiece(more, at):
                    text += more
                    self._ranges.append((at, at + len(more)))
                case CallBegin(index, name):
                    calls[index] = self._call(index, name)
                case CallArguments(index, more):
                    call = calls.setdefault(index, {"index": index, "function": {"arguments": ""}})
                    call["function"]["arguments"] += more
        self._has_calls = self._has_calls or bool(calls)
        delta: dict[str, Any] = {"content": text} if text else {}
        return delta | ({"tool_calls": list(calls.values())} if calls else {})

    def _call(self, index: int, name: str) -> dict[str, Any]:
        id_ = call_id(self._job.id, self._index, index)
        function = {"name": name, "arguments": ""}
        return {"index": index, "id": id_, "type": "function", "function": function}


def names_control(job: ShownJob) -> bool:
    """Whether control tokens say their names in the job's texts: those around calls are sought."""
    return job.row["tool_format"] is not None


def shown_logprobs(job: ShownJob, tokens: Sequence[TextToken]) -> dict[str, Any] | None:
    """Of the tokens of a text; None if there are none to show."""
    content = token_logprobs(job.vocabulary, tokens)
    return {"content": content, "refusal": None} if content else None
