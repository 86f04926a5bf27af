"""Chat completions: the object of a finished job, and the stream of chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from api.dialects.answers import completion_usage, extension, failure_of, finish_reason
from api.dialects.chat_calls import ChoiceCalls, names_control, shown_logprobs
from api.dialects.chat_logprobs import choice_logprobs
from api.dialects.chunks import ChunkFold
from api.dialects.fold import ShownJob
from api.dialects.text_tokens import TextToken, TextTokens
from api.job_view import unix_time
from api.tools.calls import Answer, split_answer
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
        name = job.row["tool_format"]
        self._calls = [ChoiceCalls(job, name, n) for n in range(self._num_choices)] if name else []

    def _first(self) -> list[dict[str, Any]]:
        """Who speaks."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [_delta_choice(index, delta) for index in range(self._num_choices)]

    def _choice(self, index: int, text: str, logprobs: Any) -> dict[str, Any] | None:
        if self._calls:
            delta, logprobs = self._calls[index].feed(text)
        else:
            delta = {"content": text} if text else {}
        if not delta and logprobs is None:
            return None
        return _delta_choice(index, delta, logprobs=logprobs)

    def _last(self, choice: dict[str, Any]) -> dict[str, Any]:
        index = choice["index"]
        if not self._calls:
            return _delta_choice(index, {}, reason=finish_reason(choice))
        calls = self._calls[index]
        delta, logprobs = calls.end(choice)
        return _delta_choice(index, delta, logprobs=logprobs, reason=calls.finish_reason(choice))

    def _logprobs(self, index: int, tokens: Sequence[TextToken]) -> dict[str, Any] | None:
        if self._calls:  # which of them are the user's is known when the text is looked at
            self._calls[index].add_tokens(tokens)
            return None
        return shown_logprobs(self._job, tokens)

    def _tokens_of(self, index: int) -> TextTokens:
        return TextTokens(self._job.vocabulary, names_control=names_control(self._job))


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
    answer = split_answer(choice, job.row["tool_format"], job_id=job.id, request=job.request)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if answer.calls and not answer.text else answer.text,
        "refusal": None,
        "annotations": [],
    }
    if answer.calls:
        message["tool_calls"] = [call.as_object() for call in answer.calls]
    return {
        "index": choice["index"],
        "message": message,
        "logprobs": _whole_logprobs(job, choice, answer),
        "finish_reason": finish_reason(
            choice, has_calls=bool(answer.calls), is_cut_in_call=answer.is_cut_in_call
        ),
    }


def _whole_logprobs(job: ShownJob, choice: dict[str, Any], answer: Answer) -> dict[str, Any] | None:
    if not choice.get("logprobs"):
        return None
    if not names_control(job):
        return {"content": choice_logprobs(job.vocabulary, choice), "refusal": None}
    if not answer.text_ranges:
        return None
    content = choice_logprobs(job.vocabulary, choice, names_control=True, ranges=answer.text_ranges)
    return {"content": content, "refusal": None}


def _delta_choice(
    index: int, delta: dict[str, Any], *, logprobs: Any = None, reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
