"""A batch as index tensors: where each packed token goes and what it sees.

The rows of a step are those of its decodes, one each, then those of its prefill chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from workers.inference.engine.kv_cache import PAGE_SIZE, KVCache, num_pages_for
from workers.inference.engine.scheduler import Batch
from workers.inference.engine.transfer import to_device

Ints = NDArray[np.int64]

# Widths of page tables are multiples of it, so that the compiled kernels see one kind of width.
_TABLE_UNIT = 16


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What the attention of every layer needs to know of a step. On the device."""

    cache: KVCache
    slots: torch.Tensor  # [T], page * PAGE_SIZE + offset where each new token is written
    tables: torch.Tensor  # [sequences, n] int32, the pages of each; meaningless beyond its end
    contexts: torch.Tensor  # [sequences], tokens of each once the step is done
    num_decodes: int  # the first sequences, of one token each
    num_splits: int  # parts into which a decode's keys are cut
    starts: torch.Tensor | None = None  # [sequences + 1], the first row of each, and the end
    tiles: torch.Tensor | None = None  # [tiles, 2]: a prefill's sequence, tokens of it before


@dataclass(frozen=True, slots=True)
class Layout:
    """A batch laid out on the host."""

    token_ids: Ints  # [T]
    positions: Ints  # [T]
    slots: Ints  # [T]
    sampled: Ints  # rows whose logits are wanted
    contexts: Ints  # [sequences]
    starts: Ints  # [sequences + 1]
    tiles: Ints  # [tiles * 2]
    tables: NDArray[np.int32]  # [sequences, n]
    num_decodes: int


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """All that a forward pass takes."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    sampled: torch.Tensor
    plan: StepPlan


def lay_out(batch: Batch, tokens_per_tile: int) -> Layout:
    """`tokens_per_tile`: neighbouring tokens of a prefill chunk that attend together."""
    chunks = batch.chunks
    lengths = np.array([chunk.num_tokens for chunk in chunks])
    starts = np.concatenate([[0], lengths.cumsum()])
    positions = np.concatenate([np.arange(chunk.start, chunk.end) for chunk in chunks])
    tables = page_tables([chunk.request.pages[: num_pages_for(chunk.end)] for chunk in chunks])
    pages = tables[np.repeat(np.arange(len(chunks)), lengths), positions // PAGE_SIZE]
    tiles = [
        number
        for sequence in range(batch.num_decodes, len(chunks))
        for skipped in range(0, chunks[sequence].num_tokens, tokens_per_tile)
        for number in (sequence, skipped)
    ]
    return Layout(
        token_ids=np.concatenate(
            [chunk.request.token_ids[chunk.start : chunk.end] for chunk in chunks]
        ),
        positions=positions,
        slots=pages.astype(np.int64) * PAGE_SIZE + positions % PAGE_SIZE,
        sampled=np.array(
            [end - 1 for chunk, end in zip(chunks, starts[1:], strict=True) if chunk.is_last]
            + batch.scored_rows,
            dtype=np.int64,
        ),
        contexts=np.array([chunk.end for chunk in chunks]),
        starts=starts,
        tiles=np.array(tiles, dtype=np.int64),
        tables=tables,
        num_decodes=batch.num_decodes,
    )


def page_tables(rows: list[list[int]]) -> NDArray[np.int32]:
    """Rows of unequal length side by side, filled up with page 0."""
    width = table_width(max(map(len, rows)))
    tables = np.zeros((len(rows), width), dtype=np.int32)
    for i, pages in enumerate(rows):
        tables[i, : len(pages)] = pages
    return tables


def table_width(num_pages: int) -> int:
    """Columns of a table for so many pages."""
    return -(-num_pages // _TABLE_UNIT) * _TABLE_UNIT


def put_on_device(layout: Layout, cache: KVCache, num_splits: int) -> DeviceStep:
    """Two copies, however many tensors."""
    device = cache.keys.device
    parts = (
        layout.token_ids,
        layout.positions,
        layout.slots,
        layout.sampled,
        layout.contexts,
        layout.starts,
        layout.tiles,
    )
    numbers = to_device(torch.from_numpy(np.concatenate(parts)), device)
    ends = np.cumsum([0, *map(len, parts)]).tolist()
    token_ids, positions, slots, sampled, contexts, starts, tiles = (
        numbers[start:end] for start, end in pairwise(ends)
    )
    plan = StepPlan(
        cache=cache,
        slots=slots,
        tables=to_device(torch.from_numpy(layout.tables), device),
        contexts=contexts,
        num_decodes=layout.num_decodes,
        num_splits=num_splits,
        starts=starts,
        tiles=tiles.view(-1, 2) if len(tiles) else None,
    )
    return DeviceStep(token_ids, positions, sampled, plan)
