"""Chat completions: the object of a finished job, and the stream of chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from api.dialects.answers import completion_usage, extension, failure_of, finish_reason
from api.dialects.chat_logprobs import choice_logprobs, token_logprobs
from api.dialects.chunks import ChunkFold
from api.dialects.fold import ShownJob
from api.dialects.text_tokens import TextToken, TextTokens
from api.job_view import unix_time
from api.tools.calls import call_id, split_answer
from api.tools.formats import format_named
from api.tools.parser import CallArguments, CallBegin, Piece, TextPiece, ToolCallParser
from store.jobs import JobRow
from tasks.ids import CHAT_PREFIX, format_job_id


def chat_completion(job: ShownJob) -> dict[str, Any]:
    """The object of a job that is over. Raises ServiceError for one that has no answer."""
    row = job.row
    if failure := failure_of(row):
        raise failure
    return {
        **_envelope(row, "chat.completion"),
        "choices": [_whole_choice(job, choice) for choice in row["output"]],
        "usage": completion_usage(row),
        "millrace": extension(row),
    }


class ChatFold(ChunkFold):
    """The stream of chunks."""

    def __init__(self, job: ShownJob) -> None:
        super().__init__(job, _envelope(job.row, "chat.completion.chunk"))
        self._calls = [_ChoiceCalls(job, index) for index in range(self._num_choices)]

    def _first(self) -> list[dict[str, Any]]:
        """Who speaks."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [_delta_choice(index, delta) for index in range(self._num_choices)]

    def _choice(self, index: int, text: str, logprobs: Any) -> dict[str, Any] | None:
        delta = self._calls[index].delta(text)
        if not delta and logprobs is None:
            return None
        return _delta_choice(index, delta, logprobs=logprobs)

    def _last(self, choice: dict[str, Any]) -> dict[str, Any]:
        calls = self._calls[choice["index"]]
        delta = calls.last_delta()
        reason = finish_reason(choice, has_calls=calls.has_calls)
        return _delta_choice(choice["index"], delta, reason=reason)

    def _logprobs(self, index: int, tokens: Sequence[TextToken]) -> dict[str, Any]:
        return {"content": token_logprobs(self._job.vocabulary, tokens), "refusal": None}

    def _tokens_of(self, index: int) -> TextTokens:
        return TextTokens(self._job.vocabulary, names_control=names_control(self._job))


def names_control(job: ShownJob) -> bool:
    """Whether control tokens say their names in the job's texts: those around calls are sought."""
    return job.row["tool_format"] is not None


class _ChoiceCalls:
    """One choice's text on its way to deltas: calls are taken out where tools were given."""

    def __init__(self, job: ShownJob, index: int) -> None:
        self._job_id = job.id
        self._index = index
        name = job.row["tool_format"]
        self._parser = ToolCallParser(format_named(name)) if name else None
        self.has_calls = False

    def delta(self, text: str) -> dict[str, Any]:
        if self._parser is None:
            return {"content": text} if text else {}
        return self._of_pieces(self._parser.feed(text))

    def last_delta(self) -> dict[str, Any]:
        return self._of_pieces(self._parser.end()) if self._parser else {}

    def _of_pieces(self, pieces: list[Piece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))
        calls: dict[int, dict[str, Any]] = {}
        for piece in pieces:
            match piece:
                case CallBegin(index, name):
                    calls[index] = {
                        "index": index,
                        "id": call_id(self._job_id, self._index, index),
                        "type": "function",
                        "function": {"name": name, "arguments": ""},
                    }
                case CallArguments(index, more):
                    call = calls.setdefault(index, {"index": index, "function": {"arguments": ""}})
                    call["function"]["arguments"] += more
        self.has_calls = self.has_calls or bool(calls)
        delta: dict[str, Any] = {"content": text} if text else {}
        return delta | ({"tool_calls": list(calls.values())} if calls else {})


def _envelope(row: JobRow, kind: str) -> dict[str, Any]:
    return {
        "id": format_job_id(row["id"], CHAT_PREFIX),
        "object": kind,
        "created": unix_time(row["created_at"]),
        "model": row["model"],
        "service_tier": row["service_tier"],
        "system_fingerprint": None,
    }


def _whole_choice(job: ShownJob, choice: dict[str, Any]) -> dict[str, Any]:
    text, calls = split_answer(
        choice["text"], job.row["tool_format"], job_id=job.id, choice=choice["index"]
    )
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if calls and not text else text,
        "refusal": None,
        "annotations": [],
    }
    if calls:
        message["tool_calls"] = [call.as_object() for call in calls]
    logprobs = None
    if choice.get("logprobs"):
        content = choice_logprobs(job.vocabulary, choice, names_control=names_control(job))
        logprobs = {"content": content, "refusal": None}
    return {
        "index": choice["index"],
        "message": message,
        "logprobs": logprobs,
        "finish_reason": finish_reason(choice, has_calls=bool(calls)),
    }


def _delta_choice(
    index: int, delta: dict[str, Any], *, logprobs: Any = None, reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
