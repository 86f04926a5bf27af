"""Logits to tokens, for a whole batch at once.

In this order: penalties and bias, then what the grammar and min_tokens forbid; log-probabilities
are those of this distribution. Then temperature, top_k, top_p and min_p, and a draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from workers.inference.engine.errors import EngineError
from workers.inference.engine.executor import SampledToken
from workers.inference.engine.request import Request
from workers.inference.engine.sampling.best import argmax
from workers.inference.engine.sampling.draw import draw
from workers.inference.engine.sampling.logprobs import token_logprobs
from workers.inference.engine.sampling.masks import mask
from workers.inference.engine.sampling.penalties import adjust
from workers.inference.engine.transfer import to_device


def sample(logits: torch.Tensor, requests: Sequence[Request]) -> list[SampledToken | EngineError]:
    """One token per request, or the error of that request alone. Changes no request's tokens.

    logits [B, V] float32, contiguous; overwritten.
    """
    errors = adjust(logits, requests) | mask(logits, requests)
    tokens, scores = _choose(logits, requests)
    logprobs = token_logprobs(logits, tokens, requests)
    # Both in one transfer: the only time that a step of plain requests waits for the device.
    found = torch.stack([tokens.double(), scores.double()], dim=1).tolist()
    sampled: list[SampledToken | EngineError] = []
    for row, (token, score) in enumerate(found):
        if row in errors:
            sampled.append(errors[row])
        elif not math.isfinite(score):
            sampled.append(_fault(logits[row]))
        else:
            sampled.append(SampledToken(int(token), logprobs.get(row)))
    return sampled


def _choose(logits: torch.Tensor, requests: Sequence[Request]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B] and their logits [B]; no finite number where there is no token to choose."""
    drawn = [row for row, request in enumerate(requests) if request.sampling.temperature > 0]
    if len(drawn) == len(requests):
        return _draw(logits, requests)
    tokens = argmax(logits)
    scores = logits.gather(1, tokens[:, None])[:, 0]
    if drawn:
        rows = to_device(torch.tensor(drawn), logits.device)
        tokens[rows], scores[rows] = _draw(logits[rows], [requests[row] for row in drawn])
    return tokens, scores


def _draw(logits: torch.Tensor, requests: Sequence[Request]) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, is_valid = draw(logits, requests)
    scores = logits.gather(1, tokens[:, None])[:, 0]
    return tokens, scores.masked_fill(~is_valid, math.nan)


def _fault(logits: torch.Tensor) -> EngineError:
    """Why no token of one row [V] can be chosen."""
    if bool((logits == -math.inf).all()):
        return EngineError("engine_error", "no token may follow")
    return EngineError("engine_error", "the model's scores are not numbers", retryable=True)
