"""Token ids to text, incrementally: no broken UTF-8, no leaked stop string.

The text of a prefix of tokens depends on those tokens alone, so an attempt that continues another
replays the old tokens and goes on exactly where the text stood.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from tokenizers.decoders import DecodeStream

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Decoder(Protocol):
    """Turns the generated tokens of one request into text. One thread at a time."""

    def push(self, token_id: int) -> str:
        """The text that this token completed; empty while a character is unfinished."""
        ...

    def flush(self) -> str:
        """What is still held back. Nothing is pushed afterwards."""
        ...


class TokenizerDecoder:
    """Decoder of a `tokenizers` model; unfinished characters wait for the token that ends them."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        """`skip_special_tokens`: they say nothing, else their names."""
        self._tokenizer = tokenizer
        self._skips_special = skip_special_tokens
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._settled: list[int] = []  # tokens of the last text given out
        self._pending: list[int] = []  # tokens after them

    def push(self, token_id: int) -> str:
        self._pending.append(token_id)
        text = self._stream.step(self._tokenizer, token_id)
        if not text:
            return ""
        self._settled, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        if not self._pending:
            return ""
        # Decoded together with the tokens before: some tokenizers drop a leading space otherwise.
        before = self._decode(self._settled)
        return self._decode(self._settled + self._pending)[len(before) :]

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skips_special)


class StopMatcher:
    """Cuts text at the first stop string, holding back what may yet become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.is_stopped = False

    def push(self, text: str) -> str:
        """The part of all text so far that no stop string can reach any more."""
        if not self._stops:
            return text
        text = self._held + text
        cut = self._first_stop(text)
        if cut is not None:
            self.is_stopped, self._held = True, ""
            return text[:cut]
        num_held = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _first_stop(self, text: str) -> int | None:
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(found, default=None)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)
