"""Text completions: the object of a finished job, and the stream of chunks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from api.dialects.answers import completion_usage, extension, failure_of, finish_reason
from api.dialects.chunks import ChunkFold
from api.dialects.completion_logprobs import later_lists, text_part, token_lists
from api.dialects.echo import Echo, ScoredEcho
from api.dialects.fold import ShownJob
from api.dialects.text_tokens import TextToken, TextTokens
from api.job_view import unix_time
from store.jobs import JobRow
from tasks.ids import COMPLETION_PREFIX, format_job_id


def text_completion(job: ShownJob) -> dict[str, Any]:
    """The object of a job that is over. Raises ServiceError for one that has no answer."""
    row = job.row
    if failure := failure_of(row):
        raise failure
    echo = Echo(job)
    return {
        **_envelope(row),
        "choices": [_whole_choice(job, echo, choice) for choice in row["output"]],
        "usage": completion_usage(row),
        "millrace": extension(row),
    }


class CompletionFold(ChunkFold):
    """The stream of chunks."""

    def __init__(self, job: ShownJob) -> None:
        self._echo = Echo(job)
        super().__init__(job, _envelope(job.row))
        self._scored: dict[int, ScoredEcho] = {}  # by the first choice of a prompt
        if self._echo.is_scored:
            for first in {self._echo.first_choice(index) for index in range(self._num_choices)}:
                tokens = self._echo.tokens(first)
                self._scored[first] = ScoredEcho(self._echo.text(first), tokens)

    def _first(self) -> list[dict[str, Any]]:
        """The prompt in front of each choice, where that was asked for and is all that is told."""
        if not self._echo.is_asked or self._echo.is_scored:
            return []
        return [_text_choice(index, self._prompt_of(index)) for index in range(self._num_choices)]

    def _prompt(self, fields: dict[str, Any]) -> list[dict[str, Any]]:
        first = fields["index"]
        if first not in self._scored:
            return []
        text, tokens = self._scored[first].feed(fields)
        if not text and not tokens:
            return []
        lists = token_lists(self._job.vocabulary, tokens, behind=0)
        return [_text_choice(i, text, logprobs=lists) for i in self._echo.choices(first)]

    def _choice(self, index: int, text: str, logprobs: Any) -> dict[str, Any] | None:
        return _text_choice(index, text, logprobs=logprobs) if text or logprobs else None

    def _after_gap(self, index: int, text: str) -> dict[str, Any] | None:
        return super()._after_gap(index, self._prompt_left(index) + text)

    def _last(self, choice: dict[str, Any]) -> dict[str, Any]:
        index = choice["index"]
        tokens = self._tokens[index].end()
        logprobs = self._logprobs(index, tokens) if tokens else None
        text = self._prompt_left(index)
        return _text_choice(index, text, logprobs=logprobs, reason=finish_reason(choice))

    def _logprobs(self, index: int, tokens: Sequence[TextToken]) -> dict[str, Any]:
        return token_lists(self._job.vocabulary, tokens, behind=len(self._prompt_of(index)))

    def _tokens_of(self, index: int) -> TextTokens:
        return TextTokens(self._job.vocabulary, keeps_all=self._echo.is_scored)

    def _prompt_of(self, index: int) -> str:
        return self._echo.text(self._echo.first_choice(index))

    def _prompt_left(self, index: int) -> str:
        """What a choice hasn't had of its prompt."""
        scored = self._scored.get(self._echo.first_choice(index))
        return scored.rest(index) if scored else ""


def _envelope(row: JobRow) -> dict[str, Any]:
    return {
        "id": format_job_id(row["id"], COMPLETION_PREFIX),
        "object": "text_completion",
        "created": unix_time(row["created_at"]),
        "model": row["model"],
        "system_fingerprint": None,
    }


def _whole_choice(job: ShownJob, echo: Echo, choice: dict[str, Any]) -> dict[str, Any]:
    prompt = echo.text(echo.first_choice(choice["index"]))
    return _text_choice(
        choice["index"],
        prompt + choice["text"],
        logprobs=_whole_logprobs(job, echo, choice),
        reason=finish_reason(choice),
    )


def _whole_logprobs(job: ShownJob, echo: Echo, choice: dict[str, Any]) -> dict[str, Any] | None:
    """Of the prompt, if it is told, and of the text; none where those of either are lost."""
    index = choice["index"]
    stored: list[Any] = [choice.get("logprobs")]
    own = partial(TextTokens.of, choice["text"], job.vocabulary, keeps_all=echo.is_scored)
    parts = [(text_part(index, own), len(echo.text(echo.first_choice(index))))]
    if echo.is_scored:
        first = echo.first_choice(index)
        stored.insert(0, job.row["output"][first].get("prompt_logprobs"))
        prompt = text_part(first, partial(echo.tokens, index), is_prompt=True)
        parts.insert(0, (prompt, 0))
    if not all(stored):
        return None
    if stored[-1] is True:
        return later_lists(job.vocabulary, parts)
    lists: dict[str, list[Any]] = {}
    for held, (part, behind) in zip(stored, parts, strict=True):
        tokens = part.entries()(held["token_ids"], held["values"])
        for name, entries in token_lists(job.vocabulary, tokens, behind=behind).items():
            lists.setdefault(name, []).extend(entries)
    return lists


def _text_choice(
    index: int, text: str, *, logprobs: Any = None, reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
