"""The prompts of a text completion, in front of the texts that continue them."""

from __future__ import annotations

from functools import cache
from typing import Any

from api.dialects.fold import ShownJob
from api.dialects.text_tokens import TextToken, TextTokens
from api.prompts.prompt import listed_prompts


class Echo:
    """Prompt i stands before choices i * n to i * n + n - 1. Empty where nobody asked for it."""

    def __init__(self, job: ShownJob) -> None:
        self._job = job
        self._prompts = listed_prompts(job.request.get("prompt") or "")
        self._num_each: int = job.row["num_choices"] // len(self._prompts)
        self.is_asked = bool(job.request.get("echo"))
        self.is_scored = self.is_asked and job.request.get("logprobs") is not None
        self.text = cache(self._text)

    @property
    def num_prompts(self) -> int:
        """Prompts of the request."""
        return len(self._prompts)

    def first_choice(self, index: int) -> int:
        """The first choice that has the same prompt."""
        return index - index % self._num_each

    def choices(self, first: int) -> range:
        """All choices of the prompt of choice `first`."""
        return range(first, first + self._num_each)

    def tokens(self, index: int) -> TextTokens:
        """The tokens of a choice's prompt, none of which has been told yet."""
        # Whoever writes a control token's name in a text has not written that token.
        names = not isinstance(self._prompts[index // self._num_each], str)
        text = self.text(self.first_choice(index))
        return TextTokens.of(text, self._job.vocabulary, names_control=names, keeps_all=True)

    def _text(self, first: int) -> str:
        if not self.is_asked:
            return ""
        prompt = self._prompts[first // self._num_each]
        if isinstance(prompt, str):
            return prompt
        return self._job.vocabulary.text_of(prompt) if self._job.vocabulary else ""


class ScoredEcho:
    """One prompt on its way through a stream, with how likely its tokens were."""

    def __init__(self, text: str, tokens: TextTokens) -> None:
        self._text = text
        self._tokens = tokens
        self._num_chars = 0  # given
        self._num_tokens = 0
        self._is_over = False
        self._completed: set[int] = set()  # choices that were given the rest without its tokens

    def feed(self, fields: dict[str, Any]) -> tuple[str, list[TextToken]]:
        """What an event adds: a part of the prompt, and its tokens. Some may have been told."""
        known = self._num_tokens - fields["start"]
        if self._is_over or known < 0:
            return "", []
        new = self._tokens.feed("", fields["token_ids"][known:], fields["logprobs"][known:])
        self._num_tokens += len(new)
        is_last = self._num_tokens == fields["total"]
        begin, self._num_chars = self._num_chars, max(self._num_chars, self._tokens.num_chars)
        if is_last:
            self._num_chars = len(self._text)
        return self._text[begin : self._num_chars], new

    def rest(self, choice: int) -> str:
        """What of the prompt a choice wasn't given: its tokens aren't told any more."""
        self._is_over = True
        if choice in self._completed:
            return ""
        self._completed.add(choice)
        return self._text[self._num_chars :]
