"""The KV cache of one model: one contiguous piece of memory per slot, bounded when it is built.

On the CPU the memory is reserved, not touched: a page costs nothing until a token is written to it.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass

import psutil
import torch

from workers.inference.engine.errors import EngineError
from workers.inference.engine.scheduler import Move


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
    """Per layer `keys` and `values`: [num_slots, num_kv_heads, capacity, head_dim]."""

    def __init__(
        self, shape: KVShape, *, num_slots: int, capacity: int, device: torch.device
    ) -> None:
        self.num_slots = num_slots
        self.capacity = capacity  # tokens per slot
        size = (shape.num_layers, num_slots, shape.num_kv_heads, capacity, shape.head_dim)
        self.keys = _zeros(size, shape.dtype, device)
        self.values = _zeros(size, shape.dtype, device)

    def write(
        self,
        layer: int,
        slots: torch.Tensor,
        positions: torch.Tensor,
        *,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> None:
        """Store the T new tokens; key and value are [num_kv_heads, T, head_dim]."""
        self.keys[layer][slots, :, positions] = key.transpose(0, 1)
        self.values[layer][slots, :, positions] = value.transpose(0, 1)

    def move(self, move: Move) -> None:
        """Copy a request to another slot, all layers."""
        for cache in (self.keys, self.values):
            cache[:, move.target, :, : move.num_tokens] = cache[
                :, move.source, :, : move.num_tokens
            ]


def fit_num_slots(
    shape: KVShape, *, wanted: int | None, default: int, capacity: int, num_bytes: int
) -> int:
    """Slots that `num_bytes` hold: `wanted` or an error, or at most `default`."""
    fitting = num_bytes // (shape.bytes_per_token * capacity)
    if fitting < (wanted or 1):
        needed = math.ceil((wanted or 1) * shape.bytes_per_token * capacity / 2**20)
        message = f"the KV cache needs {needed} MiB, {num_bytes // 2**20} MiB are free for it"
        raise EngineError("out_of_memory", message)
    return wanted or min(default, fitting)


def free_bytes(device: torch.device) -> int:
    """Memory that could be used now, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros, because a masked NaN from stale memory would still spoil attention's weighted sum."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    num_bytes = math.prod(size) * dtype.itemsize
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(size)
