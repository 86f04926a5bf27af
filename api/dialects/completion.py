"""Text completions: the object of a finished job, and the stream of chunks.

Each native event makes at most one chunk, which has its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from api.dialects.answers import completion_usage, extension, failure_of, finish_reason
from api.dialects.chat import DONE
from api.dialects.chat_logprobs import TokenLogprob
from api.dialects.fold import Frame, ShownJob, Texts
from api.errors import error_object
from api.job_view import unix_time
from api.prompts.vocabulary import Vocabulary
from store.jobs import JobRow
from tasks.errors import ServiceError
from tasks.events import Event, EventType
from tasks.ids import COMPLETION_PREFIX, format_job_id


def text_completion(job: ShownJob) -> dict[str, Any]:
    """The object of a job that is over. Raises ServiceError for one that has no answer."""
    row = job.row
    if failure := failure_of(row):
        raise failure
    return {
        **_envelope(row),
        "choices": [_choice(job, choice) for choice in row["output"]],
        "usage": completion_usage(row),
        "millrace": extension(row),
    }


class CompletionFold:
    """The stream of chunks."""

    has_native_numbers = True
    trailer = DONE

    def __init__(self, job: ShownJob) -> None:
        self._job = job
        self._envelope = _envelope(job.row)
        self._num_choices: int = job.row["num_choices"]
        self._texts = Texts(self._num_choices)
        self._has_begun = False
        options = job.request.get("stream_options") or {}
        self._includes_usage = bool(options.get("include_usage"))

    def begin(self) -> list[Frame]:
        """Nothing."""
        return []

    def feed(self, event: Event) -> list[Frame]:
        """A chunk of what one engine step produced."""
        match event.type:
            case EventType.STARTED:
                return self._echo(event.seq)
            case EventType.TOKEN:
                fields = event.fields()
                index, text = fields["index"], fields["text"]
                logprobs = self._logprobs(fields)
                self._texts.add(index, text)
                if not text and logprobs is None:
                    return []
                return self._chunk(event.seq, [_text_choice(index, text, logprobs=logprobs)])
            case EventType.GAP:
                echo = self._echo(event.seq, has_id=False)
                news = self._texts.after_gap(event.fields())
                return echo + self._chunk(event.seq, [_text_choice(*item) for item in news])
        return []

    def finish(self, seq: int, row: JobRow) -> list[Frame]:
        """Why each choice ended, then the usage if it was asked for."""
        if failure := failure_of(row):
            return self.failure(seq, failure)
        echo = self._echo(seq, has_id=False)
        choices = [
            _text_choice(choice["index"], "", reason=finish_reason(choice))
            for choice in row["output"]
        ]
        fields = {"millrace": extension(row), "choices": choices}
        last = Frame(seq, self._data(fields), has_id=not self._includes_usage)
        if not self._includes_usage:
            return [*echo, last]
        usage = {"choices": [], "usage": completion_usage(row)}
        return [*echo, last, Frame(seq, self._data(usage))]

    def failure(self, seq: int, error: ServiceError) -> list[Frame]:
        """A chunk that stock clients raise."""
        return [Frame(seq, orjson.dumps({"error": error_object(error)}), has_id=False)]

    def _echo(self, seq: int, *, has_id: bool = True) -> list[Frame]:
        """The prompt in front of each choice, where that was asked for; once a job."""
        if self._has_begun:
            return []
        self._has_begun = True
        prompt = echoed_prompt(self._job)
        if not prompt:
            return []
        choices = [_text_choice(index, prompt) for index in range(self._num_choices)]
        return [Frame(seq, self._data({"choices": choices}), has_id=has_id)]

    def _chunk(self, seq: int, choices: list[dict[str, Any]]) -> list[Frame]:
        return [Frame(seq, self._data({"choices": choices}))] if choices else []

    def _logprobs(self, fields: dict[str, Any]) -> dict[str, Any] | None:
        if "logprobs" not in fields:
            return None
        offset = len(echoed_prompt(self._job)) + len(self._texts[fields["index"]])
        return _logprobs(
            self._job.vocabulary, fields["token_ids"], fields["logprobs"], offset=offset
        )

    def _data(self, fields: dict[str, Any]) -> bytes:
        usage = {"usage": None} if self._includes_usage else {}
        return orjson.dumps({**self._envelope, **usage, **fields})


def echoed_prompt(job: ShownJob) -> str:
    """The prompt, if the client wants it in front of the text."""
    if not job.request.get("echo"):
        return ""
    prompt = job.request["prompt"]
    text = prompt[0] if isinstance(prompt, list) else prompt
    return text if isinstance(text, str) else ""


def _envelope(row: JobRow) -> dict[str, Any]:
    return {
        "id": format_job_id(row["id"], COMPLETION_PREFIX),
        "object": "text_completion",
        "created": unix_time(row["created_at"]),
        "model": row["model"],
        "system_fingerprint": None,
    }


def _choice(job: ShownJob, choice: dict[str, Any]) -> dict[str, Any]:
    echo = echoed_prompt(job)
    logprobs = choice.get("logprobs")
    if logprobs:
        logprobs = _logprobs(
            job.vocabulary, logprobs["token_ids"], logprobs["values"], offset=len(echo)
        )
    return _text_choice(
        choice["index"], echo + choice["text"], logprobs=logprobs, reason=finish_reason(choice)
    )


def _text_choice(
    index: int, text: str, *, logprobs: Any = None, reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _logprobs(
    vocabulary: Vocabulary | None,
    token_ids: Sequence[int],
    values: Sequence[TokenLogprob],
    *,
    offset: int,
) -> dict[str, Any]:
    """The older form: parallel lists, tokens as texts, and where each begins."""
    tokens: list[str] = []
    offsets: list[int] = []
    for token_id in token_ids:
        offsets.append(offset)
        tokens.append(_text(vocabulary, token_id))
        offset += len(tokens[-1])
    return {
        "tokens": tokens,
        "token_logprobs": [logprob for logprob, _ in values],
        "top_logprobs": [
            {_text(vocabulary, token_id): logprob for token_id, logprob in top} or None
            for _, top in values
        ],
        "text_offset": offsets,
    }


def _text(vocabulary: Vocabulary | None, token_id: int) -> str:
    return vocabulary.token_bytes(token_id).decode(errors="replace") if vocabulary else ""
