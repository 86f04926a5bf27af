"""Recorded decode steps, with a recorder that only calls the computation again."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from tests.unit.engine.cuda.batches import chunk
from workers.inference.engine.cuda.graphs import (
    Compute,
    DecodeBuffers,
    DecodeGraphs,
    batch_sizes,
)
from workers.inference.engine.cuda.plan import StepPlan
from workers.inference.engine.kv_cache import KVCache, KVShape
from workers.inference.engine.scheduler import Batch, Chunk

NUM_PAGES, SPARE = 8, 7
CPU = torch.device("cpu")


def cache() -> KVCache:
    return KVCache(KVShape(1, 1, 64, torch.float32), num_pages=NUM_PAGES, device=CPU)


def buffers(max_num_seqs: int = 4) -> DecodeBuffers:
    return DecodeBuffers(cache(), max_num_seqs=max_num_seqs, context_length=64)


class Model:
    """Logits that tell a row's token and position; remembers the plans it saw."""

    def __init__(self) -> None:
        self.plans: list[StepPlan] = []

    def __call__(
        self, token_ids: torch.Tensor, positions: torch.Tensor, plan: StepPlan
    ) -> torch.Tensor:
        self.plans.append(plan)
        return torch.stack([token_ids, positions], dim=1).float()


def graphs(model: Model, max_num_seqs: int = 4) -> DecodeGraphs:
    made = DecodeGraphs(
        model,
        buffers(max_num_seqs),
        sizes=batch_sizes(max_num_seqs),
        num_splits=lambda num: num,
        record=lambda compute: compute,
    )
    made.record_all(lambda: None)
    model.plans.clear()
    return made


def decodes(*token_ids: int) -> Batch:
    chunks = tuple(chunk([0] * i + [token], [i]) for i, token in enumerate(token_ids))
    return Batch(chunks, num_decodes=len(chunks))


@pytest.mark.parametrize("max_num_seqs", [1, 2, 3, 8, 32, 40, 64, 100, 256, 1000])
def test_sizes_rise_to_the_largest_batch_and_never_twice_as_far_beyond_sixteen(
    max_num_seqs: int,
) -> None:
    sizes = batch_sizes(max_num_seqs)

    assert sizes == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (1, max_num_seqs)
    assert all(b <= 2 * a for a, b in pairwise(sizes))


def test_first_sizes() -> None:
    assert batch_sizes(64) == [1, 2, 4, 8, 16, 24, 32, 48, 64]


def test_a_batch_runs_in_the_smallest_size_that_holds_it() -> None:
    recorded = graphs(Model(), max_num_seqs=24)

    found = [recorded.size_for(num) for num in (1, 2, 3, 4, 5, 17, 24)]

    assert found == [1, 2, 4, 4, 8, 24, 24]


def test_every_size_is_recorded_once_the_largest_first() -> None:
    model, num_recorded = Model(), 0
    sizes: list[int] = []

    def record(compute: Compute) -> Compute:
        sizes.append(len(compute()))
        return compute

    def count() -> None:
        nonlocal num_recorded
        num_recorded += 1

    made = DecodeGraphs(
        model, buffers(), sizes=[1, 2, 4], num_splits=lambda num: num, record=record
    )
    made.record_all(count)

    assert sizes == [4, 2, 1]
    assert num_recorded == 3
    assert [plan.num_splits for plan in model.plans] == [4, 2, 1]


def test_logits_are_those_of_the_batch_in_its_order_without_the_rows_that_fill_up() -> None:
    found = graphs(Model()).run(decodes(11, 12, 13))

    assert found.tolist() == [[11, 0], [12, 1], [13, 2]]


def test_rows_that_fill_up_write_to_the_spare_page_and_see_only_that() -> None:
    under_test = buffers()
    under_test.fill(decodes(11, 12, 13), 4)

    plan = under_test.plan(4, 1)

    assert plan.slots.tolist() == [0, 17, 34, SPARE * 16]
    assert plan.contexts.tolist() == [1, 2, 3, 1]
    assert plan.tables[:, 0].tolist() == [0, 1, 2, SPARE]


def test_a_smaller_batch_leaves_nothing_of_a_larger_one_behind() -> None:
    model = Model()
    recorded = graphs(model)
    recorded.run(decodes(11, 12, 13, 14))

    recorded.run(decodes(15))
    recorded.run(decodes(16, 17, 18))

    last = model.plans[-1]
    assert last.slots.tolist() == [0, 17, 34, SPARE * 16]
    assert last.contexts.tolist() == [1, 2, 3, 1]


def test_replays_read_the_memory_that_was_recorded() -> None:
    model = Model()
    recorded = graphs(model)

    recorded.run(decodes(11))
    recorded.run(decodes(12))

    first, second = model.plans
    assert first.slots.data_ptr() == second.slots.data_ptr()
    assert first.tables.data_ptr() == second.tables.data_ptr()


def test_pages_of_a_long_request_stand_in_its_row() -> None:
    long: Chunk = chunk([1] * 50, [6, 5, 4, 3])
    under_test = buffers()
    under_test.fill(Batch((chunk([1], [0]), long), 2), 2)

    plan = under_test.plan(2, 1)

    assert plan.tables[1, :4].tolist() == [6, 5, 4, 3]
    assert plan.slots.tolist() == [0, 3 * 16 + 1]
