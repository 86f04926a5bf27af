"""What the benchmark asks of any engine: to run a set of requests, all submitted at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from benchmarks.workload import Job


class Arm(Protocol):
    """One engine, loaded and warm. Idle between two calls: it must not take a core meanwhile."""

    def tokens_per_second(self, jobs: Sequence[Job]) -> float:
        """Useful output tokens a second, from the first submit to the last token. Greedy, no eos.

        Raises RuntimeError where a request did not get exactly its number of tokens.
        """
        ...

    def describe(self) -> str:
        """Version and the settings that matter, for the record."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


def rate(num_tokens: int, jobs: Sequence[Job], seconds: float) -> float:
    """Tokens a second of a run that had to produce every token of `jobs`."""
    check_tokens(num_tokens, jobs)
    return num_tokens / seconds


def check_tokens(num_tokens: int, jobs: Sequence[Job]) -> None:
    """Raise RuntimeError unless these are all tokens that `jobs` ask for, and no more."""
    expected = sum(job.max_tokens for job in jobs)
    if num_tokens != expected:
        raise RuntimeError(f"{num_tokens} tokens came instead of {expected}")
