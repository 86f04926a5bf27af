"""A model's control tokens in text that clients write.

A text may be a MiB of beginnings of such tokens, and a model may have hundreds of them. So what
they have in common is looked at once, and a text a stretch at a time: one call into `re` keeps the
interpreter from all other threads until it returns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter

STRETCH = 16_384  # characters: a ms or two


class ControlTokens:
    """Those of one model. Of two that begin at the same place the longer one is found."""

    def __init__(self, texts: Iterable[str]) -> None:
        known = sorted({text for text in texts if text})
        self._longest = max(map(len, known), default=0)
        self._pattern = re.compile(_any_of(known)) if known else None

    def are_in(self, text: str) -> bool:
        """Whether there is one."""
        return next(self._found(text), None) is not None

    def count(self, text: str) -> int:
        """How many there are, one behind the other."""
        return sum(1 for _ in self._found(text))

    def break_up(self, text: str, mark: str) -> str:
        """The text with a mark in each of them. It stands before the last character, so that a
        template which replaces `<|` itself still does.
        """
        pieces: list[str] = []
        begin = 0
        for found in self._found(text):
            pieces += text[begin : found.end() - 1], mark
            begin = found.end() - 1
        return "".join(pieces) + text[begin:]

    def _found(self, text: str) -> Iterator[re.Match[str]]:
        begin = 0
        while self._pattern is not None and begin < len(text):
            last = begin + STRETCH  # where one may begin and be seen to its end
            found = self._pattern.search(text, begin, last + self._longest)
            if found is not None and found.start() <= last:
                yield found
                begin = found.end()
            else:
                begin = last


def _any_of(texts: Sequence[str]) -> str:
    """A pattern for sorted texts, none empty."""
    groups = [list(group) for _, group in groupby(texts, key=itemgetter(0))]
    return "|".join(map(_alike, groups))


def _alike(texts: Sequence[str]) -> str:
    """For those that begin alike."""
    beginning = _beginning(texts[0], texts[-1])
    rests = [text[len(beginning) :] for text in texts]
    longer = [rest for rest in rests if rest]
    if not longer:
        return re.escape(beginning)
    return f"{re.escape(beginning)}(?:{_any_of(longer)}){'?' if len(longer) < len(rests) else ''}"


def _beginning(one: str, other: str) -> str:
    """What both begin with, and so all that are sorted in between."""
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))]
