"""Responses: the object in any state, and the stream of its events.

Events are numbered by themselves, from 0. The numbers depend on the native events alone, so every
replay gives the same objects under the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

import orjson

from api.dialects.answers import extension
from api.dialects.chat_logprobs import choice_logprobs, token_logprobs
from api.dialects.fold import Frame, ShownJob, Texts
from api.dialects.response_items import Draft, ItemBuilder
from api.dialects.text_tokens import TextTokens
from api.job_view import job_error, unix_time
from api.json_pieces import LaterList, pieces_of
from api.json_pieces import Piece as JsonPiece
from api.tools.calls import is_cut
from api.tools.formats import format_named
from api.tools.parser import Piece, TextPiece, ToolCallParser
from store.jobs import JobRow
from tasks.errors import ServiceError
from tasks.events import Event, EventType
from tasks.ids import RESPONSE_PREFIX, format_job_id
from tasks.jobs import TERMINAL, JobStatus

# OpenAI's list is closed; the true reason stands in the message and in the `millrace` object.
_ERROR_CODES = {
    "invalid_prompt": "invalid_prompt",
    "context_length_exceeded": "invalid_prompt",
    "invalid_grammar": "invalid_prompt",
    "invalid_request": "invalid_prompt",
    "unsupported_parameter": "invalid_prompt",
    "rate_limit_exceeded": "rate_limit_exceeded",
}
# There is no event for a cancelled response; the object's status says it.
_TERMINAL_EVENTS = {
    JobStatus.COMPLETED: "response.completed",
    JobStatus.INCOMPLETE: "response.incomplete",
    JobStatus.CANCELLED: "response.incomplete",
    JobStatus.FAILED: "response.failed",
}


def response_object(job: ShownJob) -> dict[str, Any]:
    """The object as the job's row has it."""
    row = job.row
    if row["status"] not in TERMINAL:
        return _object(job, row["status"], [])
    items = output_items(
        job.id,
        row["tool_format"],
        row["output"] or (),
        request=job.request,
        is_whole=row["status"] == JobStatus.COMPLETED,
        logprobs=_whole_logprobs(job, row),
    )
    return _finished(job, row, items)


def output_items(
    job_id: UUID,
    tool_format: str | None,
    choices: Iterable[Mapping[str, Any]],
    *,
    request: Mapping[str, Any] | None = None,
    is_whole: bool,
    logprobs: LaterList | Sequence[dict[str, Any]] = (),
) -> list[dict[str, Any]]:
    """The items of an answer that is over. Of the last one are `is_whole` and `logprobs`."""
    items = ItemBuilder(job_id)
    is_cut_in_call = False
    for choice in choices:
        pieces, is_cut_in_call = _pieces_of(tool_format, choice, request)
        for piece in pieces:
            list(items.add(piece))
    list(items.close(_item_status(is_whole and not is_cut_in_call), logprobs))
    return items.items


class ResponseFold:
    """The stream of events."""

    has_native_numbers = False
    trailer = b""

    def __init__(self, job: ShownJob) -> None:
        self._job = job
        self._next_seq = 0
        self._texts = Texts(1)
        self._items = ItemBuilder(job.id)
        name = job.row["tool_format"]
        self._parser = ToolCallParser(format_named(name)) if name else None
        self._has_begun = False
        self._tokens = TextTokens(job.vocabulary)
        self._logprobs: list[dict[str, Any]] = []  # of the text that is to be sent next

    def begin(self) -> list[Frame]:
        """The response is there, and waits."""
        waiting = _object(self._job, JobStatus.QUEUED, [])
        kinds = ("response.created", "response.queued")
        return self._frames((kind, {"response": waiting}) for kind in kinds)

    def feed(self, event: Event) -> list[Frame]:
        """Events of what one engine step produced."""
        match event.type:
            case EventType.STARTED:
                return self._frames(self._start())
            case EventType.TOKEN:
                fields = event.fields()
                self._texts.add(0, fields["text"])
                self._take_logprobs(fields)
                return self._frames(self._add(fields["text"]))
            case EventType.GAP:
                news = self._texts.after_gap(event.fields())
                self._tokens.restart(self._texts.num_chars(0))
                drafts = [draft for _, text in news for draft in self._add(text)]
                return self._frames([*self._start(), *drafts])
        return []

    def finish(self, seq: int, row: JobRow) -> list[Frame]:
        """What is open ends, then the whole object."""
        drafts = [*self._start(), *self._end(row)]
        whole = _finished(self._job, row, self._items.items)
        drafts.append((_TERMINAL_EVENTS[JobStatus(row["status"])], {"response": whole}))
        return self._frames(drafts)

    def failure(self, seq: int, error: ServiceError) -> list[Frame]:
        """Flat: stock clients raise whatever has an `error` at its top."""
        number = max(self._next_seq, seq)
        fields = {"code": error.code, "message": error.message, "param": error.param}
        data = {"type": "error", **fields, "sequence_number": number}
        return [Frame(number, orjson.dumps(data), "error", has_id=False)]

    def _start(self) -> list[Draft]:
        """Once a job: a later attempt goes on where the one before stopped."""
        if self._has_begun:
            return []
        self._has_begun = True
        running = _object(self._job, JobStatus.IN_PROGRESS, [])
        return [("response.in_progress", {"response": running})]

    def _add(self, text: str) -> list[Draft]:
        if self._parser is not None:
            return self._of(self._parser.feed(text))
        return self._of([TextPiece(text)] if text else [])

    def _end(self, row: JobRow) -> list[Draft]:
        drafts = self._of(_last_pieces(self._parser, self._job, row)) if self._parser else []
        whole = _whole_logprobs(self._job, row)
        is_cut_in_call = self._parser is not None and self._parser.is_cut_in_call
        is_whole = row["status"] == JobStatus.COMPLETED and not is_cut_in_call
        return [*drafts, *self._items.close(_item_status(is_whole), whole)]

    def _of(self, pieces: Sequence[Piece]) -> list[Draft]:
        drafts: list[Draft] = []
        for piece in pieces:
            drafts += self._items.add(piece, self._logprobs)
            self._logprobs = []
        return drafts

    def _take_logprobs(self, fields: dict[str, Any]) -> None:
        # Tokens of calls belong to no text, and can't be told apart from those that do.
        if "logprobs" in fields and self._parser is None:
            tokens = self._tokens.feed(fields["text"], fields["token_ids"], fields["logprobs"])
            self._logprobs += token_logprobs(self._job.vocabulary, tokens)

    def _frames(self, drafts: Iterable[Draft]) -> list[Frame]:
        return list(self._numbered(drafts))

    def _numbered(self, drafts: Iterable[Draft]) -> Iterator[Frame]:
        for kind, fields in drafts:
            data = {"type": kind, "sequence_number": self._next_seq, **fields}
            yield Frame(self._next_seq, _json(data), kind)
            self._next_seq += 1


def _pieces_of(
    tool_format: str | None, choice: Mapping[str, Any], request: Mapping[str, Any] | None
) -> tuple[list[Piece], bool]:
    """Those of a whole answer, and whether it was cut inside of a call."""
    text = choice["text"]
    if tool_format is None:
        return [TextPiece(text)] if text else [], False
    parser = ToolCallParser(format_named(tool_format))
    pieces = [*parser.feed(text), *parser.end(is_cut=is_cut(choice, request))]
    return _joined(pieces), parser.is_cut_in_call


def _last_pieces(parser: ToolCallParser, job: ShownJob, row: JobRow) -> list[Piece]:
    """What the end settles. A job that has no output was ended from outside."""
    return parser.end(is_cut=not row["output"] or is_cut(row["output"][0], job.request))


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Texts that follow each other as one."""
    joined: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, TextPiece) and joined and isinstance(joined[-1], TextPiece):
            joined[-1] = TextPiece(joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return joined


def _whole_logprobs(job: ShownJob, row: JobRow) -> LaterList | list[dict[str, Any]]:
    """Of the one text of an answer that calls nothing: all that its tokens had."""
    if not row["output"] or row["tool_format"] is not None:
        return []
    return choice_logprobs(job.vocabulary, row["output"][0])


def _json(data: Any) -> bytes | Sequence[JsonPiece]:
    pieces = pieces_of(data)
    [first, *others] = pieces
    return pieces if others or not isinstance(first, bytes) else first


def _item_status(is_whole: bool) -> str:
    return "completed" if is_whole else "incomplete"


def _finished(job: ShownJob, row: JobRow, items: list[dict[str, Any]]) -> dict[str, Any]:
    """The object of a job that is over."""
    is_completed = row["status"] == JobStatus.COMPLETED
    is_incomplete = row["status"] == JobStatus.INCOMPLETE
    return _object(job, row["status"], items) | {
        "completed_at": unix_time(row["finished_at"]) if is_completed else None,
        "error": _error(row),
        "incomplete_details": {"reason": "max_output_tokens"} if is_incomplete else None,
        "usage": _usage(row),
        "millrace": extension(row),
    }


def _object(job: ShownJob, status: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    row, request = job.row, job.request
    return {
        "id": format_job_id(row["id"], RESPONSE_PREFIX),
        "object": "response",
        "created_at": unix_time(row["created_at"]),
        "completed_at": None,
        "status": status,
        "background": bool(row["is_background"]),
        "error": None,
        "incomplete_details": None,
        "instructions": request.get("instructions"),
        "max_output_tokens": request.get("max_output_tokens"),
        "max_tool_calls": request.get("max_tool_calls"),
        "metadata": row["metadata"],
        "model": row["model"],
        "output": items,
        "parallel_tool_calls": request.get("parallel_tool_calls") is not False,
        "previous_response_id": request.get("previous_response_id"),
        "prompt_cache_key": request.get("prompt_cache_key"),
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": request.get("safety_identifier"),
        "service_tier": row["service_tier"],
        "store": request.get("store") is not False,
        "temperature": _or(request.get("temperature"), 1.0),
        "text": _text(request.get("text")),
        "tool_choice": request.get("tool_choice") or "auto",
        "tools": [
            {"strict": None, "parameters": None, **tool} for tool in request.get("tools") or ()
        ],
        "top_logprobs": request.get("top_logprobs") or 0,
        "top_p": _or(request.get("top_p"), 1.0),
        "truncation": request.get("truncation") or "disabled",
        "usage": None,
        "user": request.get("user"),
    }


def _or(given: float | None, default: float) -> float:
    return default if given is None else given


def _text(asked: Any) -> dict[str, Any]:
    """No model here has another verbosity, whatever was asked for."""
    given = {name: value for name, value in (asked or {}).items() if value is not None}
    return {"format": {"type": "text"}} | given | {"verbosity": "medium"}


def _error(row: JobRow) -> dict[str, str] | None:
    error = job_error(row) if row["status"] == JobStatus.FAILED else None
    if error is None:
        return None
    return {"code": _ERROR_CODES.get(error["code"], "server_error"), "message": error["message"]}


def _usage(row: JobRow) -> dict[str, Any]:
    input_tokens, output_tokens = row["input_tokens"], row["output_tokens"] or 0
    cached = row["cached_tokens"] or 0
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": input_tokens + output_tokens,
    }
