"""Drawing one token a row from the softmax of its logits, within top_k, top_p and min_p.

A draw turns one random number into a token by the running sum of the probabilities. It depends on
the row's logits, the seed and the position, and on nothing else: what shares the batch, or an
attempt that died in between, does not change it.

No limit cuts between equally likely tokens: all that tie with the last one inside are inside.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from workers.inference.engine.request import Request
from workers.inference.engine.sampling.best import top
from workers.inference.engine.transfer import to_device

_BLOCK = 256  # columns whose sum is taken at once
_MIN_TEMPERATURE = 1e-4  # a draw below it is greedy all the same, and logits would overflow
_INF = float("inf")
_TINY = torch.finfo(torch.float64).tiny
_MASK_64 = (1 << 64) - 1
_BELOW_ONE = 1 - 2.0**-40  # keeps rounding from stepping past the last token of a block


def draw(logits: torch.Tensor, requests: Sequence[Request]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B], and whether each means anything: not in a row without a distribution.

    logits [B, V] stay as they are. Waits for the device where top_p is asked for.
    """
    params = [request.sampling for request in requests]
    weights = tempered(logits, [p.temperature for p in params])
    cut_to_top_k(weights, [p.top_k for p in params])
    wanted = nucleus_mass(weights, [p.top_p for p in params])
    cut_to_min_p(weights, [p.min_p for p in params])
    tokens, mass = _pick(weights, [_uniform(request, 0) for request in requests])
    if wanted is not None:
        _draw_again(tokens, weights, wanted, requests)
    # In a row without a distribution the search may have ended beyond the vocabulary.
    return tokens.clamp_(max=logits.shape[-1] - 1), ~mass.isnan()


def tempered(logits: torch.Tensor, temperatures: Sequence[float]) -> torch.Tensor:
    """Probabilities [B, W] after temperature. W is V rounded up to whole blocks, 0 beyond V."""
    num_rows, vocab_size = logits.shape
    if vocab_size % _BLOCK == 0 and all(temperature == 1 for temperature in temperatures):
        return logits.softmax(-1)
    scaled = logits.new_empty(num_rows, -(-vocab_size // _BLOCK) * _BLOCK)
    scaled[:, vocab_size:] = -_INF
    scale = _column(
        [1 / max(temperature, _MIN_TEMPERATURE) for temperature in temperatures], logits
    )
    torch.mul(logits, scale, out=scaled[:, :vocab_size])
    return scaled.softmax(-1)


def cut_to_top_k(weights: torch.Tensor, top_k: Sequence[int]) -> None:
    """Zero what weighs less than the k-th largest of its row, in place; k = 0 is no limit."""
    rows = [row for row, k in enumerate(top_k) if 0 < k < weights.shape[-1]]
    if not rows:
        return
    limited = weights if len(rows) == len(weights) else weights[rows]
    best, _ = top(limited, max(top_k[row] for row in rows))
    last = torch.tensor([[top_k[row] - 1] for row in rows], device=weights.device)
    edge = weights.new_zeros(len(weights), 1)
    edge[rows] = best.gather(1, last)
    _cut(weights, edge)


def cut_to_min_p(weights: torch.Tensor, min_p: Sequence[float]) -> None:
    """Zero what weighs less than this share of the largest of its row, in place."""
    if any(min_p):
        _cut(weights, weights.amax(-1, keepdim=True) * _column(min_p, weights))


def nucleus_mass(weights: torch.Tensor, top_p: Sequence[float]) -> torch.Tensor | None:
    """A token is inside top_p when those above it weigh less than this [B]; None for no limits."""
    if all(p >= 1 for p in top_p):
        return None
    mass = total(weights)
    shares = _column([p if p < 1 else _INF for p in top_p], mass)[:, 0]
    return (mass * shares).clamp(min=_TINY)  # nothing is above the best token, which is inside


def total(weights: torch.Tensor) -> torch.Tensor:
    """The sums [B] of weights [B, W], the same whatever the number of rows. float64."""
    return _block_sums(weights).sum(-1)


def above(weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The weights [B, W] of tokens more likely than one that weighs `chosen` [B, 1]; else 0."""
    # A comparison that writes floats is vectorised, one that writes booleans is not.
    is_above = torch.gt(weights, chosen, out=torch.empty_like(weights))
    return is_above.mul_(weights)


def _draw_again(
    tokens: torch.Tensor, weights: torch.Tensor, wanted: torch.Tensor, requests: Sequence[Request]
) -> None:
    """Replace tokens [B] outside top_p: those above them weigh `wanted` [B] or more.

    Exact, without sorting the vocabulary. A token outside proves that all at or below it are too,
    so its row draws again from what is above. On average that halves what lies outside, and the
    best token never does.
    """
    pending, attempt = list(range(len(requests))), 0
    while True:
        weights = above(weights, weights.gather(1, tokens[pending, None]))
        again = (total(weights) >= wanted).nonzero()[:, 0].tolist()
        if not again:
            return
        pending, attempt = [pending[row] for row in again], attempt + 1
        weights, wanted = weights[again], wanted[again]
        uniforms = [_uniform(requests[row], attempt) for row in pending]
        tokens[pending], _ = _pick(weights, uniforms)


def _pick(weights: torch.Tensor, uniforms: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """The token [B] where the running sum of weights [B, W] passes this share of it; the sum [B].

    Found first among the sums of blocks, then within one block.
    """
    sums = _block_sums(weights)
    ends = sums.cumsum(-1)
    mass = ends[:, -1:]
    wanted = _column(uniforms, ends) * mass
    block = _first_above(ends, wanted)
    size = sums.gather(1, block)
    share = ((wanted - ends.gather(1, block) + size) / size).clamp(0, _BELOW_ONE)
    window = block * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    ends = weights.gather(1, window).cumsum(-1, dtype=torch.float64)
    return (block * _BLOCK + _first_above(ends, share * ends[:, -1:]))[:, 0], mass[:, 0]


def _first_above(ends: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The first column [B, 1] of rising `ends` [B, n] above `wanted` [B, 1]; the last for NaN."""
    return torch.searchsorted(ends, wanted, right=True).clamp_(max=ends.shape[-1] - 1)


def _block_sums(weights: torch.Tensor) -> torch.Tensor:
    """[B, blocks], each summed in a way that does not depend on the number of rows. float64."""
    return weights.view(len(weights), -1, _BLOCK).sum(-1).double()


def _cut(weights: torch.Tensor, edge: torch.Tensor) -> None:
    weights.mul_(torch.ge(weights, edge, out=torch.empty_like(weights)))


def _uniform(request: Request, attempt: int) -> float:
    """A random number in [0, 1) for the next token: a hash, so it needs no state and no order."""
    key = request.seed * 0x9E3779B97F4A7C15 + (request.num_generated + 1) * 0xD1B54A32D192ED03
    key = (key + attempt * 0x8CB92BA72F3D8DD7) & _MASK_64
    key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return ((key ^ (key >> 31)) >> 12) * 2.0**-52


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return to_device(torch.tensor(values, dtype=like.dtype), like.device)[:, None]
