"""How a batch is laid out for the kernels, on the host."""

from __future__ import annotations

import torch

from tests.unit.engine.cuda.batches import chunk
from workers.inference.engine.cuda.plan import lay_out, page_tables, put_on_device
from workers.inference.engine.kv_cache import KVCache, KVShape
from workers.inference.engine.scheduler import Batch

# A decode at position 17, and tokens 15 to 18 of a prompt of 30.
BATCH = Batch((chunk([1] * 17 + [5], [7, 3]), chunk([*range(30)], [2, 9], 15, 4)), num_decodes=1)


def test_tokens_are_packed_in_the_order_of_the_batch() -> None:
    layout = lay_out(BATCH, tokens_per_tile=3)

    assert layout.token_ids.tolist() == [5, 15, 16, 17, 18]
    assert layout.positions.tolist() == [17, 15, 16, 17, 18]
    assert layout.starts.tolist() == [0, 1, 5]
    assert layout.contexts.tolist() == [18, 19]


def test_each_token_has_a_slot_in_its_own_page() -> None:
    layout = lay_out(BATCH, tokens_per_tile=3)

    assert layout.slots.tolist() == [3 * 16 + 1, 2 * 16 + 15, 9 * 16, 9 * 16 + 1, 9 * 16 + 2]


def test_only_the_newest_token_of_a_request_is_sampled_from() -> None:
    whole = Batch((*BATCH.chunks, chunk([4, 5, 6], [1], 0, 3)), num_decodes=1)

    assert lay_out(whole, tokens_per_tile=3).sampled.tolist() == [0, 7]


def test_prefills_are_cut_into_tiles_that_cover_them_and_decodes_are_not() -> None:
    layout = lay_out(BATCH, tokens_per_tile=3)

    assert layout.tiles.reshape(-1, 2).tolist() == [[1, 0], [1, 3]]


def test_tables_are_as_wide_as_a_whole_number_of_units() -> None:
    tables = page_tables([[4, 5], [*range(17)]])

    assert tables.shape == (2, 32)
    assert tables[0].tolist() == [4, 5] + [0] * 30


def test_a_step_of_decodes_has_no_tiles_on_the_device() -> None:
    cache = KVCache(KVShape(1, 1, 64, torch.float32), num_pages=8, device=torch.device("cpu"))

    step = put_on_device(lay_out(Batch(BATCH.chunks[:1], 1), 3), cache, num_splits=2)

    assert step.plan.tiles is None
    assert step.token_ids.tolist() == [5]
    assert step.sampled.tolist() == [0]
    assert step.plan.slots.tolist() == [49]
    assert step.plan.contexts.tolist() == [18]
