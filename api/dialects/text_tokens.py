"""Which tokens of an answer made its text for the user, and which its calls: log probabilities are
shown of the former.

A token stands where the characters before it end. That of half a character stands where the
character will.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from api.dialects.chat_logprobs import TokenLogprob, token_logprobs
from api.json_pieces import LaterList
from api.prompts.vocabulary import Vocabulary

Range = tuple[int, int]  # of characters of the model's text; the end is exclusive
Tokens = tuple[list[int], list[TokenLogprob]]


class TextTokens:
    """Of one choice. Feed it tokens in order, then take those whose meaning is settled."""

    def __init__(self, vocabulary: Vocabulary | None) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at = 0
        self._waiting: deque[tuple[int, int, TokenLogprob]] = deque()

    def add(self, token_ids: Sequence[int], values: Sequence[TokenLogprob]) -> None:
        """More tokens of the model's."""
        for token_id, value in zip(token_ids, values, strict=True):
            self._waiting.append((self._at, token_id, value))
            data = self._vocabulary.token_bytes(token_id) if self._vocabulary else b""
            self._at += len(self._decoder.decode(data))

    def skip_to(self, num_chars: int) -> None:
        """The tokens of so many characters are lost, or were all given."""
        if not self._waiting:
            self._at = num_chars
            self._decoder.reset()

    def take(self, ranges: Iterable[Range], num_settled: int | None) -> Tokens:
        """Those of the user's text among the tokens before a character; among all without one."""
        spans = list(ranges)
        token_ids: list[int] = []
        values: list[TokenLogprob] = []
        while self._waiting and (num_settled is None or self._waiting[0][0] < num_settled):
            at, token_id, value = self._waiting.popleft()
            if any(begin <= at < end for begin, end in spans):
                token_ids.append(token_id)
                values.append(value)
        return token_ids, values


def text_logprobs(
    vocabulary: Vocabulary | None, choice: Mapping[str, Any], ranges: Sequence[Range]
) -> LaterList | list[dict[str, Any]]:
    """The entries of a finished choice's text, which stood at `ranges`. What isn't read yet is read
    while it is sent.
    """
    tokens = TextTokens(vocabulary)

    def entries(token_ids: Sequence[int], values: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        tokens.add(token_ids, values)
        return token_logprobs(vocabulary, *tokens.take(ranges, None))

    stored = choice["logprobs"]
    if stored is True:
        return LaterList(choice["index"], entries)
    return entries(stored["token_ids"], stored["values"])
