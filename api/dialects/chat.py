"""Chat completions: the object of a finished job, and the stream of chunks.

Each native event makes at most one chunk, which has its number: a client that resumes after a chunk
gets the next one.
"""

from __future__ import annotations

from typing import Any

import orjson

from api.dialects.answers import completion_usage, extension, failure_of, finish_reason
from api.dialects.chat_logprobs import token_logprobs
from api.dialects.fold import Frame, ShownJob, Texts
from api.errors import error_object
from api.job_view import unix_time
from api.tools.calls import call_id, split_answer
from api.tools.formats import format_named
from api.tools.parser import CallArguments, CallBegin, Piece, TextPiece, ToolCallParser
from store.jobs import JobRow
from tasks.errors import ServiceError
from tasks.events import Event, EventType
from tasks.ids import CHAT_PREFIX, format_job_id

DONE = b"data: [DONE]\n\n"


def chat_completion(job: ShownJob) -> dict[str, Any]:
    """The object of a job that is over. Raises ServiceError for one that has no answer."""
    row = job.row
    if failure := failure_of(row):
        raise failure
    return {
        **_envelope(row, "chat.completion"),
        "choices": [_choice(job, choice) for choice in row["output"]],
        "usage": completion_usage(row),
        "millrace": extension(row),
    }


class ChatFold:
    """The stream of chunks."""

    has_native_numbers = True
    trailer = DONE

    def __init__(self, job: ShownJob) -> None:
        self._job = job
        self._envelope = _envelope(job.row, "chat.completion.chunk")
        self._num_choices: int = job.row["num_choices"]
        self._texts = Texts(self._num_choices)
        self._calls = [_ChoiceCalls(job, index) for index in range(self._num_choices)]
        self._has_begun = False
        options = job.request.get("stream_options") or {}
        self._includes_usage = bool(options.get("include_usage"))

    def begin(self) -> list[Frame]:
        """Nothing: the first chunk says who speaks when the job starts."""
        return []

    def feed(self, event: Event) -> list[Frame]:
        """A chunk of what one engine step produced."""
        match event.type:
            case EventType.STARTED:
                return self._start(event.seq)
            case EventType.TOKEN:
                fields = event.fields()
                self._texts.add(fields["index"], fields["text"])
                choice = self._delta(fields["index"], fields["text"], self._logprobs(fields))
                return self._chunk(event.seq, [choice] if choice else [])
            case EventType.GAP:
                news = self._texts.after_gap(event.fields())
                choices = [self._delta(index, text, None) for index, text in news]
                start = self._start(event.seq, has_id=False)
                return start + self._chunk(event.seq, [choice for choice in choices if choice])
        return []

    def finish(self, seq: int, row: JobRow) -> list[Frame]:
        """Why each choice ended, then the usage if it was asked for."""
        if failure := failure_of(row):
            return self.failure(seq, failure)
        start = self._start(seq, has_id=False)
        choices = [self._last(choice) for choice in row["output"]]
        fields = {"millrace": extension(row), "choices": choices}
        last = Frame(seq, self._data(fields), has_id=not self._includes_usage)
        if not self._includes_usage:
            return [*start, last]
        usage = {"choices": [], "usage": completion_usage(row)}
        return [*start, last, Frame(seq, self._data(usage))]

    def failure(self, seq: int, error: ServiceError) -> list[Frame]:
        """A chunk that stock clients raise."""
        return [Frame(seq, orjson.dumps({"error": error_object(error)}), has_id=False)]

    def _start(self, seq: int, *, has_id: bool = True) -> list[Frame]:
        """Once a job: a later attempt goes on where the one before stopped."""
        if self._has_begun:
            return []
        self._has_begun = True
        delta = {"role": "assistant", "content": "", "refusal": None}
        choices = [_delta_choice(index, delta) for index in range(self._num_choices)]
        return [Frame(seq, self._data({"choices": choices}), has_id=has_id)]

    def _chunk(self, seq: int, choices: list[dict[str, Any]]) -> list[Frame]:
        return [Frame(seq, self._data({"choices": choices}))] if choices else []

    def _delta(self, index: int, text: str, logprobs: Any) -> dict[str, Any] | None:
        delta = self._calls[index].delta(text)
        if not delta and logprobs is None:
            return None
        return _delta_choice(index, delta, logprobs=logprobs)

    def _last(self, choice: dict[str, Any]) -> dict[str, Any]:
        calls = self._calls[choice["index"]]
        delta = calls.last_delta()
        reason = finish_reason(choice, has_calls=calls.has_calls)
        return _delta_choice(choice["index"], delta, reason=reason)

    def _logprobs(self, fields: dict[str, Any]) -> dict[str, Any] | None:
        if "logprobs" not in fields:
            return None
        content = token_logprobs(self._job.vocabulary, fields["token_ids"], fields["logprobs"])
        return {"content": content, "refusal": None} if content else None

    def _data(self, fields: dict[str, Any]) -> bytes:
        usage = {"usage": None} if self._includes_usage else {}
        return orjson.dumps({**self._envelope, **usage, **fields})


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


def _choice(job: ShownJob, choice: dict[str, Any]) -> dict[str, Any]:
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
    logprobs = choice.get("logprobs")
    if logprobs:
        content = token_logprobs(job.vocabulary, logprobs["token_ids"], logprobs["values"])
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
