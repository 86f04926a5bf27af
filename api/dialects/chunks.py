"""The stream that chat and text completions share: chunks, then why it ended, then `[DONE]`.

Each native event makes at most one chunk, which has its number: a client that resumes after a chunk
gets the next one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import orjson

from api.dialects.answers import completion_usage, extension, failure_of
from api.dialects.fold import Frame, ShownJob, Texts
from api.errors import error_object
from store.jobs import JobRow
from tasks.errors import ServiceError
from tasks.events import Event, EventType


class ChunkFold(ABC):
    """What differs is how a choice looks, and what stands in front of the first one."""

    has_native_numbers = True
    trailer = b"data: [DONE]\n\n"

    def __init__(self, job: ShownJob, envelope: dict[str, Any]) -> None:
        """`envelope` are the fields that all chunks have alike."""
        self._job = job
        self._envelope = envelope
        self._num_choices: int = job.row["num_choices"]
        self._texts = Texts(self._num_choices)
        self._has_begun = False
        options = job.request.get("stream_options") or {}
        self._includes_usage = bool(options.get("include_usage"))

    def begin(self) -> list[Frame]:
        """Nothing before the job starts."""
        return []

    def feed(self, event: Event) -> list[Frame]:
        """A chunk of what one engine step produced."""
        match event.type:
            case EventType.STARTED:
                return self._start(event.seq)
            case EventType.TOKEN:
                fields = event.fields()
                choice = self._choice(fields["index"], fields["text"], self._logprobs(fields))
                self._texts.add(fields["index"], fields["text"])
                return self._chunk(event.seq, [choice] if choice else [])
            case EventType.GAP:
                news = self._texts.after_gap(event.fields())
                choices = [self._choice(index, text, None) for index, text in news]
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

    @abstractmethod
    def _first(self) -> list[dict[str, Any]]:
        """The choices of the chunk in front of all text; none for no such chunk."""

    @abstractmethod
    def _choice(self, index: int, text: str, logprobs: Any) -> dict[str, Any] | None:
        """More text of a choice; None if there is nothing to show yet."""

    @abstractmethod
    def _last(self, choice: dict[str, Any]) -> dict[str, Any]:
        """The end of a choice, from the finished job's `output`."""

    @abstractmethod
    def _logprobs(self, fields: dict[str, Any]) -> dict[str, Any] | None:
        """Of a token event, before its text is added; None where they were not asked for."""

    def _start(self, seq: int, *, has_id: bool = True) -> list[Frame]:
        """Once a job: a later attempt goes on where the one before stopped."""
        if self._has_begun:
            return []
        self._has_begun = True
        choices = self._first()
        return [Frame(seq, self._data({"choices": choices}), has_id=has_id)] if choices else []

    def _chunk(self, seq: int, choices: list[dict[str, Any]]) -> list[Frame]:
        return [Frame(seq, self._data({"choices": choices}))] if choices else []

    def _data(self, fields: dict[str, Any]) -> bytes:
        usage = {"usage": None} if self._includes_usage else {}
        return orjson.dumps({**self._envelope, **usage, **fields})
