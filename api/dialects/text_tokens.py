"""Which tokens a text holds, and where in it each begins: what log-probabilities are shown of.

A token belongs to a text if it begins before the text ends. So neither the token that ends a text
nor one behind a stop string is part of it, in a stream or in the whole.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from api.prompts.vocabulary import Vocabulary

# [log probability, [[token id, log probability], ...]]: how native events and results hold them.
TokenLogprob = Sequence[Any]

Range = tuple[int, int]  # of characters of a text; the end is exclusive

_Decoder = codecs.getincrementaldecoder("utf-8")


class TextToken(NamedTuple):
    """One token of a text."""

    token_id: int
    data: bytes  # what it adds to the text
    value: TokenLogprob
    offset: int  # characters of the text before the one in which it begins


def within(tokens: Iterable[TextToken], ranges: Sequence[Range]) -> list[TextToken]:
    """Those that begin in one of some parts of their text."""
    return [token for token in tokens if any(begin <= token.offset < end for begin, end in ranges)]


class TextTokens:
    """The tokens of one text, in order. A stream's come as soon as the text reaches them."""

    def __init__(
        self,
        vocabulary: Vocabulary | None,
        *,
        names_control: bool = False,
        keeps_all: bool = False,
    ) -> None:
        """`names_control`: control tokens say their names in this text, else they say nothing.

        `keeps_all`: tokens that say nothing, and those behind the end of the text, are given too,
        without data: one for each that there is.
        """
        self._vocabulary = vocabulary
        self._names_control = names_control
        self._keeps_all = keeps_all
        self._is_whole = False  # the text is all there is
        self._num_chars = 0  # of the text so far
        self._head = ""  # of the text, once there is some
        self._first: bytes | None = None  # what the first token says that says something
        self._at = 0  # characters before the next token
        self._bytes = _Decoder("replace")
        self._waiting: deque[TextToken] = deque()

    @classmethod
    def of(cls, text: str, vocabulary: Vocabulary | None, **options: bool) -> TextTokens:
        """Those of a text that is all there."""
        tokens = cls(vocabulary, **options)
        tokens.feed(text, (), ())
        tokens._is_whole = True
        return tokens

    @property
    def num_chars(self) -> int:
        """Characters of the text in front of the next token."""
        return max(0, min(self._at, self._num_chars))

    def feed(
        self, text: str, token_ids: Sequence[int], values: Sequence[TokenLogprob]
    ) -> list[TextToken]:
        """More tokens, and more text, perhaps of tokens before. What begins in the text so far."""
        for token_id, value in zip(token_ids, values, strict=True):
            self._place(token_id, value)
        self._num_chars += len(text)
        self._head = self._head or text[:1]
        self._drop_lost_space()
        return self._take()

    def end(self) -> list[TextToken]:
        """The text ends here: what is left of its tokens, if all are kept."""
        self._is_whole = True
        return self._take()

    def restart(self, num_chars: int) -> None:
        """The text goes on behind so many characters, whose tokens are lost."""
        self._waiting.clear()
        self._bytes.reset()
        self._at = self._num_chars = num_chars
        self._head, self._first = " ", b""

    def _place(self, token_id: int, value: TokenLogprob) -> None:
        data = self._data(token_id)
        if not data and self._is_control(token_id) and not self._keeps_all:
            return
        if self._first is None and data:
            self._first = data
        if self._bytes.getstate()[0] and data and not 0x80 <= data[0] < 0xC0:
            self._at += len(self._bytes.decode(b"", final=True))  # a character that has no end
            self._bytes.reset()
        self._waiting.append(TextToken(token_id, data, value, self._at))
        self._at += len(self._bytes.decode(data))

    def _drop_lost_space(self) -> None:
        """Some tokenizers write a text without the space that its first token begins with."""
        if not self._head or self._first is None:
            return
        if self._first.startswith(b" ") and self._head != " ":
            self._at -= 1
            moved = (token._replace(offset=token.offset - 1) for token in self._waiting)
            self._waiting = deque(moved)
        self._head, self._first = " ", b""

    def _take(self) -> list[TextToken]:
        found = []
        while self._waiting and (self._waiting[0].offset < self._num_chars or self._is_whole):
            token = self._waiting.popleft()
            if token.offset < self._num_chars:
                found.append(token._replace(offset=max(0, token.offset)))
            elif self._keeps_all:
                found.append(token._replace(data=b"", offset=self._num_chars))
        return found

    def _data(self, token_id: int) -> bytes:
        if self._vocabulary is None or (self._is_control(token_id) and not self._names_control):
            return b""
        return self._vocabulary.token_bytes(token_id)

    def _is_control(self, token_id: int) -> bool:
        return self._vocabulary is not None and self._vocabulary.is_control(token_id)
