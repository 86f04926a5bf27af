"""The memory of one model's KV cache: pages of PAGE_SIZE tokens, bounded when it is built.

Which page belongs to whom is the scheduler's affair (page_pool.py). On the CPU the memory is
reserved, not touched: a page costs nothing until a token is written to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from workers.inference.engine.errors import EngineError
from workers.inference.engine.memory import zeros_on_huge_pages

PAGE_SIZE = 16  # tokens


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one token takes in the cache."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize


class KVCache:
    """`keys` and `values`: [num_layers, num_pages, num_kv_heads, PAGE_SIZE, head_dim].

    The native step lays a page out in its own way (native/attention.h); the sizes are the same.
    """

    def __init__(self, shape: KVShape, *, num_pages: int, device: torch.device) -> None:
        self.num_pages = num_pages
        size = (shape.num_layers, num_pages, shape.num_kv_heads, PAGE_SIZE, shape.head_dim)
        self.keys = _zeros(size, shape.dtype, device)
        self.values = _zeros(size, shape.dtype, device)


def num_pages_for(num_tokens: int) -> int:
    """Pages that hold this many tokens of one request."""
    return -(-num_tokens // PAGE_SIZE)


def fit_num_pages(shape: KVShape, *, max_num_seqs: int, context_length: int, num_bytes: int) -> int:
    """Pages that `num_bytes` hold, at most what `max_num_seqs` full contexts need.

    Raises EngineError where not even one full context fits.
    """
    page_bytes = shape.bytes_per_token * PAGE_SIZE
    least = num_pages_for(context_length)
    fitting = num_bytes // page_bytes
    if fitting < least:
        message = (
            f"one context of {context_length} tokens takes {_mib(least * page_bytes)} MiB of KV "
            f"cache ({shape.bytes_per_token} bytes a token), {_mib(num_bytes)} MiB are free for it"
        )
        raise EngineError("out_of_memory", message)
    return min(fitting, max_num_seqs * least)


def _mib(num_bytes: int) -> int:
    return math.ceil(num_bytes / 2**20)


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros, because a masked NaN from stale memory would still spoil attention's weighted sum."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    return zeros_on_huge_pages(size, dtype)
