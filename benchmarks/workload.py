"""W-mix: prompts of U(16, 128) tokens, outputs of U(8, 128), greedy. Seeded: both arms run it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

CONCURRENCY = 32


@dataclass(frozen=True, slots=True)
class Job:
    """One request of the workload."""

    prompt: tuple[int, ...]  # token ids
    max_tokens: int


def w_mix(seed: int) -> Iterator[Job]:
    """Endless."""
    source = random.Random(seed)
    while True:
        length = source.randint(16, 128)
        prompt = tuple(source.randint(3, 4_000) for _ in range(length))
        yield Job(prompt, source.randint(8, 128))


def w_mix_batch() -> list[Job]:
    """W-mix as one batch of 32: 2,243 output tokens. Every prompt is drawn before any length."""
    source = random.Random(0)
    prompts = [
        tuple(source.randint(3, 4_000) for _ in range(source.randint(16, 128)))
        for _ in range(CONCURRENCY)
    ]
    return [Job(prompt, source.randint(8, 128)) for prompt in prompts]


def short(seed: int) -> Iterator[Job]:
    """For time to first token on an idle platform: 32 tokens in, 2 out."""
    source = random.Random(seed)
    while True:
        yield Job(tuple(source.randint(3, 4_000) for _ in range(32)), 2)
