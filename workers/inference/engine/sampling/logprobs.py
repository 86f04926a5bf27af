"""Log-probabilities of chosen tokens, or of a prompt's, and of the likeliest ones beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from workers.inference.engine.errors import EngineError
from workers.inference.engine.protocol import TokenLogprobs
from workers.inference.engine.request import Request
from workers.inference.engine.sampling.best import top
from workers.inference.engine.scheduler import Chunk
from workers.inference.engine.transfer import to_device

# Of a token of a prompt that the model holds for impossible: JSON has no infinity. vLLM's number.
_IMPOSSIBLE = -9999.0


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
    found = _logprobs(scores, tokens[rows], list(limits.values()))
    return dict(zip(rows, found, strict=True))


def prompt_logprobs(logits: torch.Tensor, chunks: Sequence[Chunk]) -> list[list[TokenLogprobs]]:
    """For each chunk, of the tokens behind its rows to score. logits [rows of all chunks, V].

    Raises EngineError for scores that are not numbers.
    """
    token_ids, limits, ends = [], [], []
    for chunk in chunks:
        rows = chunk.rows_to_score
        token_ids += chunk.request.token_ids[rows.start + 1 : rows.stop + 1]
        limits += [chunk.request.sampling.prompt_logprobs or 0] * len(rows)
        ends.append(len(limits))
    if not limits:
        return [[] for _ in chunks]
    found = _logprobs(logits, to_device(torch.tensor(token_ids), logits.device), limits)
    told = [_possible(logprobs) for logprobs in found]
    return [told[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, limits: Sequence[int]
) -> list[TokenLogprobs]:
    """Of token and likeliest ones of each row. logits [R, V], tokens [R], R limits."""
    total = logits.logsumexp(-1, keepdim=True)
    chosen_ids = tokens[:, None]
    chosen = logits.gather(1, chosen_ids) - total
    best, best_ids = top(logits, min(max(limits), logits.shape[-1]))
    ids = torch.cat([chosen_ids, best_ids], dim=1).tolist()
    logprobs = torch.cat([chosen, best - total], dim=1).tolist()
    pairs = (list(zip(*row, strict=True)) for row in zip(ids, logprobs, strict=True))
    return [
        TokenLogprobs(*chosen_pair, _likeliest(others, limit))
        for limit, (chosen_pair, *others) in zip(limits, pairs, strict=True)
    ]


def _likeliest(pairs: Sequence[tuple[int, float]], limit: int) -> tuple[tuple[int, float], ...]:
    """The first `limit` possible ones of (token id, logprob); equals in the order of their ids."""
    possible = [pair for pair in pairs if pair[1] > -math.inf]
    return tuple(sorted(possible, key=lambda pair: (-pair[1], pair[0]))[:limit])


def _possible(logprobs: TokenLogprobs) -> TokenLogprobs:
    assert logprobs.logprob is not None
    if math.isnan(logprobs.logprob):
        message = "the model's scores are not numbers"
        raise EngineError("engine_error", message, retryable=True)
    bounded = max(logprobs.logprob, _IMPOSSIBLE)
    return TokenLogprobs(logprobs.token_id, bounded, logprobs.top)
