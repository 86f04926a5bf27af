"""Takes out of the logits what the requests' grammars do not allow next."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from workers.inference.engine.errors import EngineError
from workers.inference.engine.grammar import TokenGrammar, allowed_tokens
from workers.inference.engine.request import Request
from workers.inference.engine.transfer import to_device


def mask(logits: torch.Tensor, requests: Sequence[Request]) -> dict[int, EngineError]:
    """Set logits [B, V] of tokens that may not follow to -inf, in place. Errors by row.

    Rows without a grammar cost nothing.
    """
    rows = [row for row, request in enumerate(requests) if request.grammar is not None]
    if not rows:
        return {}
    grammars = [_token_grammar(requests[row]) for row in rows]
    allowed = allowed_tokens(grammars, logits.shape[-1])
    for i, row in enumerate(rows):
        if suppressed := requests[row].suppressed_token_ids:
            _suppress(allowed[i], suppressed)
    _apply(logits, rows, allowed)
    errors = zip(rows, (grammar.error for grammar in grammars), strict=True)
    return {row: error for row, error in errors if error is not None}


def _token_grammar(request: Request) -> TokenGrammar:
    assert isinstance(request.grammar, TokenGrammar)
    return request.grammar


def _suppress(allowed: NDArray[np.int32], token_ids: Iterable[int]) -> None:
    """Take token_ids out of one row's mask, unless they are all that the grammar has left."""
    others = allowed.copy()
    others_bytes = others.view(np.uint8)
    for token_id in token_ids:
        others_bytes[token_id // 8] &= 0xFF ^ (1 << token_id % 8)
    if others.any():
        allowed[:] = others


def _apply(logits: torch.Tensor, rows: list[int], allowed: NDArray[np.int32]) -> None:
    """One addition over the rows: of 0 where a token is allowed, else of -inf."""
    words = to_device(torch.from_numpy(np.ascontiguousarray(allowed)), logits.device)
    bits = words.view(torch.uint8)
    table = _addends(logits.device)
    addends = table.index_select(0, bits.flatten().int()).view(len(rows), -1)
    addends = addends[:, : logits.shape[-1]]
    if len(rows) == len(logits):
        logits.add_(addends)
    else:
        logits.index_add_(0, torch.tensor(rows, device=logits.device), addends)


@functools.cache
def _addends(device: torch.device) -> torch.Tensor:
    """For each value of a byte, what it adds to the logits of its eight tokens. [256, 8]."""
    bits = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
    return torch.where(bits == 1, 0.0, float("-inf")).to(device)
