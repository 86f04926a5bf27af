"""Triton kernels over the pages of a KV cache. launch.py says what their arguments are.

Keys and values of a layer: [pages, KV_HEADS, PAGE, HEAD_DIM] each, contiguous. Numbers of heads,
sizes and the window are constants of a model, so a model compiles each kernel once or twice.
Rows of a block that stand for nothing are computed like the others and never stored.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Their addresses are those of parts of a larger buffer: aligned or not, one compiled kernel serves.
_METADATA = ("slots", "tables", "contexts", "starts", "tiles")
_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
_MINUS_INF: tl.constexpr = tl.constexpr(float("-inf"))


@triton.jit(do_not_specialize_on_alignment=_METADATA)
def write_pages(
    keys: tl.tensor,
    values: tl.tensor,
    new_keys: tl.tensor,
    new_values: tl.tensor,
    slots: tl.tensor,
    key_row: tl.tensor,
    key_head: tl.tensor,
    value_row: tl.tensor,
    value_head: tl.tensor,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
) -> None:
    """Put one head of one new token where it belongs. Grid (tokens, KV_HEADS)."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + row)
    d = tl.arange(0, BLOCK_D)
    is_real = d < HEAD_DIM
    target = ((slot // PAGE * KV_HEADS + head) * PAGE + slot % PAGE) * HEAD_DIM + d
    key = tl.load(new_keys + row * key_row + head * key_head + d, mask=is_real)
    value = tl.load(new_values + row * value_row + head * value_head + d, mask=is_real)
    tl.store(keys + target, key, mask=is_real)
    tl.store(values + target, value, mask=is_real)


@triton.jit(do_not_specialize_on_alignment=_METADATA)
def attend(
    out: tl.tensor,
    sums: tl.tensor,
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    tables: tl.tensor,
    contexts: tl.tensor,
    starts: tl.tensor,
    tiles: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    query_row: tl.tensor,
    query_head: tl.tensor,
    table_row: tl.tensor,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    IS_DECODE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    MIN_SPLIT: tl.constexpr,
) -> None:
    """The query heads of one KV head for some neighbouring tokens. Grid (tiles, KV_HEADS, splits).

    Rows of a block are the GROUP heads of a first token, then those of the next one. A decode is a
    tile of one token; the others are listed in `tiles`. A split sees a part of the keys.
    """
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence, first, num_tokens, position = _place(
        tile, contexts, starts, tiles, IS_DECODE, BLOCK_M // GROUP
    )
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    token = m // GROUP
    head = kv_head * GROUP + m % GROUP
    is_row = token < num_tokens
    is_query = is_row[:, None] & (d < HEAD_DIM)[None, :]
    row = first + token
    q = tl.load(
        query + row[:, None] * query_row + head[:, None] * query_head + d[None, :],
        mask=is_query,
        other=0.0,
    )
    low, high = _range_of_split(position, num_tokens, split, WINDOW, BLOCK_N, NUM_SPLITS, MIN_SPLIT)
    best = tl.full([BLOCK_M], _MINUS_INF, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(low, high, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        is_key = n < high
        page = tl.load(tables + sequence * table_row + n // PAGE, mask=is_key, other=0)
        place = ((page.to(tl.int64) * KV_HEADS + kv_head) * PAGE + n % PAGE) * HEAD_DIM
        k = tl.load(
            keys + place[None, :] + d[:, None],
            mask=is_key[None, :] & (d < HEAD_DIM)[:, None],
            other=0.0,
        )
        scores = tl.dot(q, k, input_precision="ieee") * scale
        if HAS_SOFTCAP:
            scores = softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)  # softcap * tanh
        is_seen = is_key[None, :] & (n[None, :] <= (position + token)[:, None])
        if WINDOW > 0:
            is_seen = is_seen & (n[None, :] > (position + token)[:, None] - WINDOW)
        scores = tl.where(is_seen, scores * _LOG2_E, _MINUS_INF)
        new_best = tl.maximum(best, tl.max(scores, 1))
        # A row that has seen nothing yet: -inf minus -inf would be no number.
        base = tl.where(new_best == _MINUS_INF, 0.0, new_best)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(best - base)
        # Beyond the last key a page holds anything, even what is no number.
        v = tl.load(
            values + place[:, None] + d[None, :],
            mask=is_key[:, None] & (d < HEAD_DIM)[None, :],
            other=0.0,
        )
        total = total * shrink + tl.sum(weights, 1)
        mixed = mixed * shrink[:, None]
        mixed += tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        best = new_best
    mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
    place_of_row = (row * (KV_HEADS * GROUP) + head) * NUM_SPLITS + split
    tl.store(
        out + place_of_row[:, None] * HEAD_DIM + d[None, :],
        mixed.to(out.dtype.element_ty),
        mask=is_query,
    )
    if NUM_SPLITS > 1:
        size = tl.log2(tl.where(total == 0.0, 1.0, total)) + best  # -inf where nothing was seen
        tl.store(sums + place_of_row, size, mask=is_row)


@triton.jit
def join_splits(
    out: tl.tensor,
    parts: tl.tensor,
    sums: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
) -> None:
    """Mean of the splits' results, weighted by 2^sums. Grid (tokens * heads,).

    parts [rows, NUM_SPLITS, HEAD_DIM] and sums [rows, NUM_SPLITS], float32; NUM_SPLITS is a power
    of two.
    """
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, NUM_SPLITS)
    d = tl.arange(0, BLOCK_D)
    is_real = d < HEAD_DIM
    sizes = tl.load(sums + row * NUM_SPLITS + s)
    weights = tl.exp2(sizes - tl.max(sizes, 0))
    weights = weights / tl.sum(weights, 0)
    part = tl.load(
        parts + (row * NUM_SPLITS + s)[:, None] * HEAD_DIM + d[None, :],
        mask=is_real[None, :],
        other=0.0,
    )
    joined = tl.sum(part * weights[:, None], 0)
    tl.store(out + row * HEAD_DIM + d, joined.to(out.dtype.element_ty), mask=is_real)


@triton.jit
def _place(
    tile: tl.tensor,
    contexts: tl.tensor,
    starts: tl.tensor,
    tiles: tl.tensor,
    IS_DECODE: tl.constexpr,
    TOKENS: tl.constexpr,
) -> tl.tuple:
    """A tile's sequence, first row, number of tokens, and the position of its first token."""
    if IS_DECODE:
        sequence = tile.to(tl.int64)
        first = sequence
        num_tokens = tl.full([], 1, tl.int64)
        position = tl.load(contexts + sequence).to(tl.int64) - 1
    else:
        sequence = tl.load(tiles + 2 * tile).to(tl.int64)
        skipped = tl.load(tiles + 2 * tile + 1).to(tl.int64)
        start = tl.load(starts + sequence).to(tl.int64)
        left = tl.load(starts + sequence + 1).to(tl.int64) - start - skipped
        first = start + skipped
        num_tokens = tl.minimum(left, TOKENS)
        position = tl.load(contexts + sequence).to(tl.int64) - left
    return sequence, first, num_tokens, position


@triton.jit
def _range_of_split(
    position: tl.tensor,
    num_tokens: tl.tensor,
    split: tl.tensor,
    WINDOW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    MIN_SPLIT: tl.constexpr,
) -> tl.tuple:
    """The keys from `low` to before `high` that one split of a tile reads; whole blocks.

    The sequence is cut into equal parts, but none below MIN_SPLIT blocks: the last splits of a
    short one have nothing to do.
    """
    low = tl.full([], 0, tl.int64)
    if WINDOW > 0:
        low = tl.maximum(position - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    high = position + num_tokens
    if NUM_SPLITS > 1:
        size = tl.cdiv(tl.cdiv(high - low, BLOCK_N), NUM_SPLITS)
        size = tl.maximum(size, MIN_SPLIT) * BLOCK_N
        low = low + split * size
        high = tl.minimum(high, low + size)
    return low, high
