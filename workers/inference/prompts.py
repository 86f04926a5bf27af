"""The prompts of a job, each with the choices that continue it, and how likely its tokens were.

A job has one, or with a list of prompts several: then their tokens stand one after another, and
`prompt_lengths` beside the sampling parameters says how many each has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from store.attempts import Claimed
from tasks.token_ids import unpack_token_ids

PROMPT_LENGTHS = "prompt_lengths"


@dataclass(slots=True)
class JobPrompt:
    """One prompt."""

    first_choice: int
    num_choices: int
    num_tokens: int
    # As the wire has them, of its first tokens, as far as they are known.
    logprobs: list[Any] = field(default_factory=list)

    @property
    def is_scored(self) -> bool:
        """Whether those of all its tokens are known."""
        return len(self.logprobs) == self.num_tokens


def prompts_of(claimed: Claimed) -> list[JobPrompt]:
    """In order. Prompt i has choices i * n to i * n + n - 1."""
    lengths = _lengths(claimed)
    num_each = claimed.num_choices // len(lengths)
    return [JobPrompt(at * num_each, num_each, length) for at, length in enumerate(lengths)]


def prompt_token_ids(claimed: Claimed) -> list[list[int]]:
    """The tokens of each prompt."""
    token_ids = unpack_token_ids(claimed.prompt_token_ids)
    bounds = accumulate(_lengths(claimed), initial=0)
    return [token_ids[begin:end] for begin, end in pairwise(bounds)]


def asks_prompt_logprobs(claimed: Claimed) -> bool:
    """Whether events and result hold log-probabilities of prompts."""
    return claimed.sampling.get("prompt_logprobs") is not None


def _lengths(claimed: Claimed) -> list[int]:
    lengths: list[int] | None = claimed.sampling.get(PROMPT_LENGTHS)
    return lengths or [len(claimed.prompt_token_ids) // 4]
