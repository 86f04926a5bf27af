"""The stream that chat and text completions share: chunks, then why it ended, then `[DONE]`.

Each native event makes at most one chunk, which has its number: a client that resumes after a chunk
gets the next one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import orjson

from api.dialects.answers import completion_usage, extension, failure_of
from api.dialects.fold import Frame, ShownJob, Texts
from api.dialects.text_tokens import TextToken, TextTokens
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
        self._tokens = [self._tokens_of(index) for index in range(self._num_choices)]
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
                choice = self._add(event.fields())
                return self._chunk(event.seq, [choice] if choice else [])
            case EventType.PROMPT:
                return self._chunk(event.seq, self._prompt(event.fields()))
            case EventType.GAP:
                news = dict(self._texts.after_gap(event.fields()))
                choices = [self._after_gap(i, news.get(i, "")) for i in range(self._num_choices)]
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
    def _logprobs(self, index: int, tokens: Sequence[TextToken]) -> dict[str, Any] | None:
        """Those of some tokens of a choice's text; None if there is nothing to show yet."""

    @abstractmethod
    def _tokens_of(self, index: int) -> TextTokens:
        """The tokens of a choice's text, of which there are none yet."""

    def _prompt(self, fields: dict[str, Any]) -> list[dict[str, Any]]:
        """What is shown of a part of a prompt that was scored."""
        return []

    def _add(self, fields: dict[str, Any]) -> dict[str, Any] | None:
        """More of a choice."""
        index, text = fields["index"], fields["text"]
        self._texts.add(index, text)
        tokens: list[TextToken] = []
        if "logprobs" in fields:
            tokens = self._tokens[index].feed(text, fields["token_ids"], fields["logprobs"])
        return self._choice(index, text, self._logprobs(index, tokens) if tokens else None)

    def _after_gap(self, index: int, text: str) -> dict[str, Any] | None:
        """What a gap adds to a choice, whose tokens so far are lost."""
        self._tokens[index].restart(self._texts.num_chars(index))
        return self._choice(index, text, None)

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
