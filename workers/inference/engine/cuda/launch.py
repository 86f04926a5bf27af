"""Starts the kernels: chooses block sizes and grids. Works on any device that Triton runs on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from workers.inference.engine.cuda import kernels
from workers.inference.engine.cuda.plan import StepPlan
from workers.inference.engine.kv_cache import PAGE_SIZE

MAX_HEAD_DIM = 256
MAX_SPLITS = 32
_MIN_ROWS = 16  # of a matrix product in Triton
_MAX_ROWS = 64
_BLOCK_BYTES = 16_384  # of a block of rows or keys: four of them fit into any recent GPU
_MIN_SPLIT_KEYS = 256  # that a split of a sequence reads at least
_PROGRAMS_PER_CORE = 2  # that decoding should have, so that no multiprocessor waits
_NUM_WARPS = 4
# Blocks of keys on their way at once: a decode waits for memory, a prefill computes.
_DECODE_STAGES, _PREFILL_STAGES = 3, 2


@dataclass(frozen=True, slots=True)
class Formula:
    """What a layer's attention computes, besides its shapes."""

    scale: float
    window: int = 0  # a token sees so many, itself among them; 0: all
    softcap: float = 0.0  # 0: none


def write_pages(
    cache: tuple[torch.Tensor, torch.Tensor],
    key: torch.Tensor,
    value: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """Scatter key and value [kv_heads, T, D] to slots [T] of cache [pages, kv_heads, PAGE, D]."""
    key, value = _with_unit_stride(key), _with_unit_stride(value)
    num_kv_heads, num_tokens, head_dim = key.shape
    kernels.write_pages[(num_tokens, num_kv_heads)](
        *cache,
        key,
        value,
        slots,
        key.stride(1),
        key.stride(0),
        value.stride(1),
        value.stride(0),
        KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_D=power_of_two(head_dim),
        PAGE=PAGE_SIZE,
    )


def attend(
    query: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
    plan: StepPlan,
    formula: Formula,
) -> torch.Tensor:
    """query [heads, T, D] over cache [pages, kv_heads, PAGE, D]; the result is [T, heads, D]."""
    call = _Call(_with_unit_stride(query), cache, plan, formula)
    num_heads, num_tokens, head_dim = query.shape
    out = torch.empty(num_tokens, num_heads, head_dim, dtype=query.dtype, device=query.device)
    if plan.num_decodes:
        _attend_decodes(out, call)
    if plan.tiles is not None:
        rows = tile_rows(call.group, head_dim, query.dtype)
        call.launch(out, out, grid=(len(plan.tiles), 1), rows=rows, is_decode=False)
    return out


def tokens_per_tile(num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Tokens of one prefill chunk that one tile takes."""
    group = num_heads // num_kv_heads
    return tile_rows(group, head_dim, dtype) // group


def tile_rows(group: int, head_dim: int, dtype: torch.dtype) -> int:
    """Rows of a prefill's tile, tokens times heads; at least one token's."""
    return max(block_size(head_dim, dtype), power_of_two(group))


def block_size(head_dim: int, dtype: torch.dtype) -> int:
    """Keys that a program holds at once, and rows of a tile; a power of two."""
    row_bytes = power_of_two(head_dim) * dtype.itemsize
    return max(_MIN_ROWS, min(_MAX_ROWS, _BLOCK_BYTES // row_bytes))


def choose_num_splits(num_programs: int, num_cores: int, max_context: int) -> int:
    """Into how many parts decodes cut their keys, so that every multiprocessor has work.

    A power of two, from the longest context there can be: what is recorded in a graph stays.
    """
    wanted = _PROGRAMS_PER_CORE * num_cores / num_programs
    most = max_context / _MIN_SPLIT_KEYS
    num_splits = 1
    while num_splits < min(wanted, most, MAX_SPLITS):
        num_splits *= 2
    return num_splits


def power_of_two(number: int) -> int:
    """The least one that is no smaller."""
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True, slots=True)
class _Call:
    """The attention of one layer in one step; launched for its decodes, and for the rest."""

    query: torch.Tensor
    cache: tuple[torch.Tensor, torch.Tensor]
    plan: StepPlan
    formula: Formula

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.query.shape[0] // self.cache[0].shape[1]

    def launch(
        self,
        out: torch.Tensor,
        sums: torch.Tensor,
        *,
        grid: tuple[int, int],
        rows: int,
        is_decode: bool,
    ) -> None:
        """`grid`: tiles and splits. `rows`: of a tile."""
        query, (keys, values), plan, formula = self.query, self.cache, self.plan, self.formula
        num_tiles, num_splits = grid
        num_kv_heads, head_dim = keys.shape[1], keys.shape[-1]
        block = block_size(head_dim, keys.dtype)
        unused = plan.contexts  # in place of what only prefills have
        kernels.attend[(num_tiles, num_kv_heads, num_splits)](
            out,
            sums,
            query,
            keys,
            values,
            plan.tables,
            plan.contexts,
            unused if plan.starts is None else plan.starts,
            unused if plan.tiles is None else plan.tiles,
            formula.scale,
            formula.softcap,
            query.stride(1),
            query.stride(0),
            plan.tables.stride(0),
            KV_HEADS=num_kv_heads,
            GROUP=self.group,
            HEAD_DIM=head_dim,
            BLOCK_D=power_of_two(head_dim),
            PAGE=PAGE_SIZE,
            BLOCK_M=rows,
            BLOCK_N=block,
            WINDOW=formula.window,
            HAS_SOFTCAP=formula.softcap > 0,
            IS_DECODE=is_decode,
            NUM_SPLITS=num_splits,
            MIN_SPLIT=_MIN_SPLIT_KEYS // block,
            num_warps=_NUM_WARPS,
            num_stages=_DECODE_STAGES if is_decode else _PREFILL_STAGES,
        )


def _attend_decodes(out: torch.Tensor, call: _Call) -> None:
    num_heads, _, head_dim = call.query.shape
    num_decodes, num_splits = call.plan.num_decodes, call.plan.num_splits
    rows = max(_MIN_ROWS, power_of_two(call.group))
    if num_splits == 1:
        call.launch(out, out, grid=(num_decodes, 1), rows=rows, is_decode=True)
        return
    sums = torch.empty(num_decodes, num_heads, num_splits, dtype=torch.float32, device=out.device)
    parts = sums.new_empty(*sums.shape, head_dim)
    call.launch(parts, sums, grid=(num_decodes, num_splits), rows=rows, is_decode=True)
    kernels.join_splits[(num_decodes * num_heads,)](
        out,
        parts,
        sums,
        HEAD_DIM=head_dim,
        BLOCK_D=power_of_two(head_dim),
        NUM_SPLITS=num_splits,
    )


def _with_unit_stride(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
