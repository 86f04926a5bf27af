"""Chunks of requests for a step."""

from __future__ import annotations

from workers.inference.engine.proof import PagedTokens
from workers.inference.engine.scheduler import Chunk


def chunk(
    token_ids: list[int], pages: list[int], start: int | None = None, num_tokens: int = 1
) -> Chunk:
    """By default a decode: the newest token alone."""
    first = len(token_ids) - 1 if start is None else start
    return PagedTokens(token_ids, pages).chunk(first, num_tokens)
