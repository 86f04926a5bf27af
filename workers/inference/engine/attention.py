"""Attention over slots, entered by the model's own modules through transformers' interface.

A step's tokens arrive packed as one row of T tokens: first the decodes, one token each, then the
prefill chunks. G below is the number of query heads that share a KV head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from workers.inference.engine.errors import EngineError
from workers.inference.engine.kv_cache import KVCache
from workers.inference.engine.scheduler import Batch, Chunk

ATTENTION_NAME = "millrace_slots"
# A decode reads every slot up to the longest context in the batch, rounded up to this (tokens).
LENGTH_BUCKET = 64


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """One prefill chunk: rows `start` to `end` of the packed tokens."""

    start: int
    end: int
    slot: int
    length: int  # cached tokens of the slot, this chunk included
    mask: torch.Tensor | None  # [rows, length], 0 or -inf; None: plain causal, or a single row


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Where each packed token goes and what it sees. Built once a step, used by every layer."""

    cache: KVCache
    slots: torch.Tensor  # [T]
    positions: torch.Tensor  # [T]
    num_decodes: int
    decode_slots: slice | torch.Tensor  # a slice where the slots are adjacent: no copy of the cache
    decode_length: int
    decode_mask: torch.Tensor | None  # [num_decodes, 1, 1, decode_length], 0 or -inf
    prefills: tuple[PrefillPlan, ...]


def plan_step(batch: Batch, cache: KVCache) -> StepPlan:
    """Index tensors and masks of a batch, on the cache's device."""
    device = cache.keys.device
    slots = [_slot(chunk) for chunk in batch.chunks for _ in range(chunk.num_tokens)]
    positions = [p for chunk in batch.chunks for p in range(chunk.start, chunk.end)]
    decodes = batch.chunks[: batch.num_decodes]
    length = _bucket(max((chunk.end for chunk in decodes), default=0), cache.capacity)
    return StepPlan(
        cache=cache,
        slots=torch.tensor(slots, device=device),
        positions=torch.tensor(positions, device=device),
        num_decodes=len(decodes),
        decode_slots=_decode_slots(slots[: len(decodes)], device),
        decode_length=length,
        decode_mask=_decode_mask(decodes, length, cache.keys),
        prefills=tuple(_plan_prefills(batch, cache)),
    )


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    step_plan: StepPlan,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer. query [1, heads, T, D], key and value [1, kv_heads, T, D].

    Returns [1, T, heads, D]. Writes the new keys and values to the cache first.
    """
    _refuse_unknown(kwargs)
    plan, layer = step_plan, module.layer_idx
    assert isinstance(layer, int)
    plan.cache.write(layer, plan.slots, plan.positions, key=key[0], value=value[0])
    keys, values = plan.cache.keys[layer], plan.cache.values[layer]
    grouped = query[0].reshape(key.shape[1], -1, *query.shape[2:])  # [kv_heads, G, T, D]
    parts = [
        _prefill(grouped[:, :, p.start : p.end], keys[p.slot], values[p.slot], p, scaling)
        for p in plan.prefills
    ]
    if plan.num_decodes:
        parts.insert(0, _decode(grouped[:, :, : plan.num_decodes], keys, values, plan, scaling))
    return torch.cat(parts).unsqueeze(0), None


def _decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    plan: StepPlan,
    scaling: float | None,
) -> torch.Tensor:
    """One token per slot. query [kv_heads, G, B, D] -> [B, heads, D].

    The query group forms the rows of one call per KV head, so no key is read twice; expanding the
    keys to all heads (enable_gqa with a mask) takes four times as long on the CPU.
    """
    assert plan.decode_mask is not None
    rows = query.permute(2, 0, 1, 3)  # [B, kv_heads, G, D]
    out = scaled_dot_product_attention(
        rows,
        keys[plan.decode_slots, :, : plan.decode_length],
        values[plan.decode_slots, :, : plan.decode_length],
        attn_mask=plan.decode_mask.expand(-1, rows.shape[1], rows.shape[2], -1),
        scale=scaling,
    )
    return out.flatten(1, 2)


def _prefill(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    prefill: PrefillPlan,
    scaling: float | None,
) -> torch.Tensor:
    """One chunk against its own slot. query [kv_heads, G, n, D] -> [n, heads, D]."""
    num_rows = query.shape[2]
    size = (-1, query.shape[1], -1, -1)  # the KV head is broadcast to its group, not copied
    out = scaled_dot_product_attention(
        query,
        keys[:, None, : prefill.length].expand(size),
        values[:, None, : prefill.length].expand(size),
        attn_mask=prefill.mask,
        is_causal=prefill.mask is None and num_rows > 1,
        scale=scaling,
    )
    return out.permute(2, 0, 1, 3).flatten(1, 2)


def _plan_prefills(batch: Batch, cache: KVCache) -> list[PrefillPlan]:
    plans = []
    row = batch.num_decodes
    for chunk in batch.chunks[batch.num_decodes :]:
        mask = _chunk_mask(chunk, cache.keys)
        end = row + chunk.num_tokens
        plans.append(PrefillPlan(row, end, _slot(chunk), chunk.end, mask))
        row = end
    return plans


def _chunk_mask(chunk: Chunk, like: torch.Tensor) -> torch.Tensor | None:
    """Later chunks see all earlier tokens: causal, aligned to the lower right corner."""
    if chunk.start == 0 or chunk.num_tokens == 1:
        return None
    mask = like.new_full((chunk.num_tokens, chunk.end), float("-inf"))
    return mask.triu(chunk.start + 1)


def _decode_mask(
    decodes: tuple[Chunk, ...], length: int, like: torch.Tensor
) -> torch.Tensor | None:
    if not decodes:
        return None
    ends = torch.tensor([chunk.end for chunk in decodes], device=like.device)
    is_hidden = torch.arange(length, device=like.device) >= ends[:, None]
    mask = like.new_zeros((len(decodes), length)).masked_fill_(is_hidden, float("-inf"))
    return mask[:, None, None, :]


def _decode_slots(slots: list[int], device: torch.device) -> slice | torch.Tensor:
    if slots and slots[-1] - slots[0] != len(slots) - 1:
        return torch.tensor(slots, device=device)
    return slice(slots[0], slots[-1] + 1) if slots else slice(0)


def _bucket(length: int, capacity: int) -> int:
    return min(-(-length // LENGTH_BUCKET) * LENGTH_BUCKET, capacity)


def _slot(chunk: Chunk) -> int:
    assert chunk.request.slot is not None
    return chunk.request.slot


def _refuse_unknown(kwargs: dict[str, object]) -> None:
    """Variants of attention that this function would silently compute wrongly."""
    for name in ("softcap", "s_aux", "position_bias", "cu_seq_lens_q"):
        if kwargs.get(name) is not None:
            raise EngineError("model_unsupported", f"attention with {name} is not supported")
