"""Text completions: the object of a finished job, and the stream of chunks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any

from api.dialects.answers import completion_usage, extension, failure_of, finish_reason
from api.dialects.chat_logprobs import TokenLogprob
from api.dialects.chunks import ChunkFold
from api.dialects.fold import ShownJob
from api.job_view import unix_time
from api.json_pieces import LaterList
from api.prompts.vocabulary import Vocabulary
from store.jobs import JobRow
from tasks.ids import COMPLETION_PREFIX, format_job_id

_LISTS = ("tokens", "token_logprobs", "top_logprobs")  # of log-probabilities, one entry a token


def text_completion(job: ShownJob) -> dict[str, Any]:
    """The object of a job that is over. Raises ServiceError for one that has no answer."""
    row = job.row
    if failure := failure_of(row):
        raise failure
    return {
        **_envelope(row),
        "choices": [_whole_choice(job, choice) for choice in row["output"]],
        "usage": completion_usage(row),
        "millrace": extension(row),
    }


class CompletionFold(ChunkFold):
    """The stream of chunks."""

    def __init__(self, job: ShownJob) -> None:
        super().__init__(job, _envelope(job.row))

    def _first(self) -> list[dict[str, Any]]:
        """The prompt in front of each choice, where that was asked for."""
        prompt = echoed_prompt(self._job)
        return [_text_choice(index, prompt) for index in range(self._num_choices) if prompt]

    def _choice(self, index: int, text: str, logprobs: Any) -> dict[str, Any] | None:
        return _text_choice(index, text, logprobs=logprobs) if text or logprobs else None

    def _last(self, choice: dict[str, Any]) -> dict[str, Any]:
        return _text_choice(choice["index"], "", reason=finish_reason(choice))

    def _logprobs(self, fields: dict[str, Any]) -> dict[str, Any] | None:
        if "logprobs" not in fields:
            return None
        offset = len(echoed_prompt(self._job)) + self._texts.num_chars(fields["index"])
        return _logprobs(
            self._job.vocabulary, fields["token_ids"], fields["logprobs"], offset=offset
        )


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


def _whole_choice(job: ShownJob, choice: dict[str, Any]) -> dict[str, Any]:
    echo = echoed_prompt(job)
    logprobs = choice.get("logprobs")
    if logprobs is True:
        logprobs = _later_logprobs(job.vocabulary, choice["index"], offset=len(echo))
    elif logprobs:
        logprobs = _logprobs(
            job.vocabulary, logprobs["token_ids"], logprobs["values"], offset=len(echo)
        )
    return _text_choice(
        choice["index"], echo + choice["text"], logprobs=logprobs, reason=finish_reason(choice)
    )


def _later_logprobs(
    vocabulary: Vocabulary | None, choice: int, *, offset: int
) -> dict[str, LaterList]:
    """The same lists, read while they are sent."""
    behind = offset

    def part(name: str, token_ids: Sequence[int], values: Sequence[TokenLogprob]) -> Sequence[Any]:
        part: Sequence[Any] = _logprobs(vocabulary, token_ids, values, offset=0)[name]
        return part

    def offsets(token_ids: Sequence[int], values: Sequence[TokenLogprob]) -> Sequence[int]:
        nonlocal behind
        lengths = [len(_text(vocabulary, token_id)) for token_id in token_ids]
        begins = list(accumulate(lengths, initial=behind))
        behind = begins.pop()
        return begins

    lists = {name: LaterList(choice, partial(part, name)) for name in _LISTS}
    return lists | {"text_offset": LaterList(choice, offsets)}


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
