"""Log-probabilities of chosen tokens and of the likeliest ones beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from workers.inference.engine.protocol import TokenLogprobs
from workers.inference.engine.request import Request
from workers.inference.engine.sampling.best import top


def token_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, requests: Sequence[Request]
) -> dict[int, TokenLogprobs]:
    """For the rows that ask. logits [B, V] are penalised and masked, but not scaled; tokens [B].

    `top` is shorter where a grammar allows fewer tokens: one that is impossible is no candidate.
    """
    limits = {
        row: request.sampling.logprobs
        for row, request in enumerate(requests)
        if request.sampling.logprobs is not None
    }
    if not limits:
        return {}
    rows = list(limits)
    scores = logits if len(rows) == len(logits) else logits[rows]
    total = scores.logsumexp(-1, keepdim=True)
    chosen_ids = tokens[rows, None]
    chosen = scores.gather(1, chosen_ids) - total
    best, best_ids = top(scores, min(max(limits.values()), logits.shape[-1]))
    ids = torch.cat([chosen_ids, best_ids], dim=1).tolist()
    logprobs = torch.cat([chosen, best - total], dim=1).tolist()
    pairs = (list(zip(*row, strict=True)) for row in zip(ids, logprobs, strict=True))
    return {
        row: TokenLogprobs(*chosen_pair, _likeliest(others, limit))
        for (row, limit), (chosen_pair, *others) in zip(limits.items(), pairs, strict=True)
    }


def _likeliest(pairs: Sequence[tuple[int, float]], limit: int) -> tuple[tuple[int, float], ...]:
    """The first `limit` possible ones of (token id, logprob); equals in the order of their ids."""
    possible = [pair for pair in pairs if pair[1] > -math.inf]
    return tuple(sorted(possible, key=lambda pair: (-pair[1], pair[0]))[:limit])
