"""One small mistake in one file, as text to put in the place of other text."""

from __future__ import annotations

from dataclasses import dataclass

# What becomes of a comparison of moments: one is never exactly another.
REVERSED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


@dataclass(frozen=True, slots=True, order=True)
class Mutant:
    """Characters `start` to `end` of a file become `text`. Line numbers count from 1."""

    path: str  # from the root of the repository
    start: int
    end: int
    text: str
    kind: str
    line: int

    def applied_to(self, source: str) -> str:
        return source[: self.start] + self.text + source[self.end :]

    def lines(self, source: str) -> tuple[str, str]:
        """What it changes, before and after, as one line each, for people and for the file of
        equivalents. A change over several lines is shown whole."""
        first = source.rfind("\n", 0, self.start) + 1
        last = source.find("\n", self.end)
        last = len(source) if last < 0 else last
        before = source[first:last]
        after = source[first : self.start] + self.text + source[self.end : last]
        return " ".join(before.split()), " ".join(after.split())


@dataclass(frozen=True, slots=True)
class Span:
    """A run of characters of a file."""

    start: int
    end: int
