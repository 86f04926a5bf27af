"""The best and the k best of each row, exactly, without a pass of torch's slow reductions.

Both look at the maxima of small blocks first: torch computes those at the speed of memory, its
argmax and topk over a whole vocabulary take 10 to 30 times as long.
"""

from __future__ import annotations

import torch

_BLOCK = 256
_TOP_BLOCK = 16
_MIN_WIDTH = 4096  # columns; in a smaller table there is nothing to gain


def argmax(values: torch.Tensor) -> torch.Tensor:
    """The index of the largest value of each row, the first among equals; NaN counts as largest.

    values [B, V], result [B].
    """
    width = values.shape[-1]
    if width < _MIN_WIDTH:
        return values.argmax(-1)
    num_blocks, num_left = divmod(width, _BLOCK)
    maxima = values[:, : num_blocks * _BLOCK].view(-1, num_blocks, _BLOCK).amax(-1)
    if num_left:
        last = values[:, -num_left:].amax(-1, keepdim=True)
        maxima = torch.cat([maxima, last], dim=1)
    # The last window may begin early: what it shares with the block before is below its best.
    start = (maxima.argmax(-1) * _BLOCK).clamp(max=width - _BLOCK)[:, None]
    window = values.gather(1, start + torch.arange(_BLOCK, device=values.device))
    return start[:, 0] + window.argmax(-1)


def top(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest values of each row, falling, and their indices. values [B, V], results [B, k].

    A block whose maximum is not among the k best maxima holds none of the k best values.
    """
    width = values.shape[-1]
    num_blocks = width // _TOP_BLOCK
    if width < _MIN_WIDTH or k * 2 > num_blocks:
        return _pair(values.topk(k, dim=-1))
    # Block i is every num_blocks-th column from i on; what is left over are candidates at once.
    blocks = values[:, : num_blocks * _TOP_BLOCK].view(-1, _TOP_BLOCK, num_blocks)
    chosen = blocks.amax(1).topk(k, dim=-1).indices
    steps = torch.arange(0, num_blocks * _TOP_BLOCK, num_blocks, device=values.device)
    left = torch.arange(num_blocks * _TOP_BLOCK, width, device=values.device)
    indices = (chosen[:, :, None] + steps).flatten(1)
    indices = torch.cat([indices, left.expand(len(values), -1)], dim=1)
    best, where = _pair(values.gather(1, indices).topk(k, dim=-1))
    return best, indices.gather(1, where)


def _pair(found: torch.return_types.topk) -> tuple[torch.Tensor, torch.Tensor]:
    return found.values, found.indices
