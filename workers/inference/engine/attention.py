"""Attention over pages, entered by the model's own modules through transformers' interface.

A step's tokens arrive packed as one row of T tokens: first the decodes, one token each, then the
prefill chunks. G below is the number of query heads that share a KV head, L a number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention

from workers.inference.engine.errors import EngineError
from workers.inference.engine.kv_cache import PAGE_SIZE, KVCache, num_pages_for
from workers.inference.engine.scheduler import Batch, Chunk

ATTENTION_NAME = "millrace_pages"


@dataclass(slots=True)
class Group:
    """Rows of the packed tokens that attend together: all decodes, or one prefill chunk."""

    rows: slice
    pages: torch.Tensor  # [B, n] page numbers, padded with any page
    positions: torch.Tensor  # [B, queries] of the query tokens
    _masks: dict[int, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int, like: torch.Tensor) -> torch.Tensor:
        """[B, 1, queries, L], 0 or -inf: what lies ahead, or behind the window, is hidden."""
        if window not in self._masks:
            length = self.pages.shape[1] * PAGE_SIZE
            keys = torch.arange(length, device=like.device)
            queries = self.positions[:, None, :, None]
            hidden = keys > queries
            if window:
                hidden |= keys <= queries - window
            zeros = like.new_zeros(hidden.shape)
            self._masks[window] = zeros.masked_fill_(hidden, float("-inf"))
        return self._masks[window]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Where each packed token goes and what it sees. Built once a step, used by every layer."""

    cache: KVCache
    positions: torch.Tensor  # [T]
    pages: torch.Tensor  # [T], the page each new token is written to
    offsets: torch.Tensor  # [T], its place in that page
    groups: tuple[Group, ...]


def plan_step(batch: Batch, cache: KVCache) -> StepPlan:
    """Index tensors of a batch, on the cache's device."""
    device = cache.keys.device
    positions = [p for chunk in batch.chunks for p in range(chunk.start, chunk.end)]
    pages = [
        chunk.request.pages[p // PAGE_SIZE]
        for chunk in batch.chunks
        for p in range(chunk.start, chunk.end)
    ]
    position_ids = torch.tensor(positions, device=device)
    return StepPlan(
        cache=cache,
        positions=position_ids,
        pages=torch.tensor(pages, device=device),
        offsets=position_ids % PAGE_SIZE,
        groups=tuple(_groups(batch, device)),
    )


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    step_plan: StepPlan,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer. query [1, heads, T, D], key and value [1, kv_heads, T, D].

    Returns [1, T, heads, D]. Writes the new keys and values to the cache first.
    """
    refuse_unknown(attention_mask, kwargs, "softcap")
    plan, layer = step_plan, module.layer_idx
    assert isinstance(layer, int)
    keys, values = plan.cache.keys[layer], plan.cache.values[layer]
    keys[plan.pages, :, plan.offsets] = key[0].transpose(0, 1)
    values[plan.pages, :, plan.offsets] = value[0].transpose(0, 1)
    grouped = query[0].reshape(key.shape[1], -1, *query.shape[2:])  # [kv_heads, G, T, D]
    window = sliding_window or 0
    parts = [
        _attend(grouped, (keys, values), group, window=window, scaling=scaling)
        for group in plan.groups
    ]
    return torch.cat(parts).unsqueeze(0), None


def refuse_unknown(
    attention_mask: torch.Tensor | None, kwargs: dict[str, object], *others: str
) -> None:
    """Variants of attention that this function would silently compute wrongly.

    For ours the library makes no mask: where there is one, the model hides more than what it tells.
    """
    if attention_mask is not None:
        raise EngineError("model_unsupported", "attention with a mask of its own is not supported")
    for name in ("s_aux", "position_bias", "cu_seq_lens_q", *others):
        if kwargs.get(name) is not None:
            raise EngineError("model_unsupported", f"attention with {name} is not supported")


def _attend(
    query: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
    group: Group,
    *,
    window: int,
    scaling: float | None,
) -> torch.Tensor:
    """One group. query [kv_heads, G, T, D], cache [pages, kv_heads, PAGE_SIZE, D] each.

    Returns [rows, heads, D].

    The query heads of a KV head and the query tokens form the rows of one call, so that no key is
    expanded to all heads; on the CPU that (enable_gqa with a mask) takes four times as long.
    """
    num_requests, num_queries = group.positions.shape
    num_kv_heads, num_grouped, _, head_dim = query.shape
    rows = (
        query[:, :, group.rows]
        .reshape(num_kv_heads, num_grouped, num_requests, num_queries, head_dim)
        .permute(2, 0, 1, 3, 4)
    )  # [B, kv_heads, G, queries, D]
    mask = group.mask(window, query)
    out = scaled_dot_product_attention(
        rows.reshape(num_requests, num_kv_heads, num_grouped * num_queries, head_dim),
        _gather(cache[0], group.pages),
        _gather(cache[1], group.pages),
        attn_mask=mask.repeat(1, 1, num_grouped, 1).expand(-1, num_kv_heads, -1, -1),
        scale=scaling,
    )
    out = out.view(num_requests, num_kv_heads, num_grouped, num_queries, head_dim)
    out = out.permute(0, 3, 1, 2, 4)
    return out.reshape(num_requests * num_queries, num_kv_heads * num_grouped, head_dim)


def _gather(cache: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    """[pages, kv_heads, PAGE_SIZE, D] -> [B, kv_heads, L, D], copied."""
    return cache[pages].transpose(1, 2).flatten(2, 3)


def _groups(batch: Batch, device: torch.device) -> list[Group]:
    decodes, prefills = batch.chunks[: batch.num_decodes], batch.chunks[batch.num_decodes :]
    groups = [_group(decodes, slice(0, len(decodes)), device)] if decodes else []
    row = len(decodes)
    for chunk in prefills:
        groups.append(_group((chunk,), slice(row, row + chunk.num_tokens), device))
        row += chunk.num_tokens
    return groups


def _group(chunks: Sequence[Chunk], rows: slice, device: torch.device) -> Group:
    num_pages = max(num_pages_for(chunk.end) for chunk in chunks)
    pages = [_padded(chunk.request.pages, num_pages) for chunk in chunks]
    positions = [list(range(chunk.start, chunk.end)) for chunk in chunks]
    return Group(rows, torch.tensor(pages, device=device), torch.tensor(positions, device=device))


def _padded(pages: list[int], length: int) -> list[int]:
    return pages[:length] + [pages[0]] * (length - len(pages))
