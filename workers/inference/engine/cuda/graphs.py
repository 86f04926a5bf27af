"""Decode steps recorded once per size of batch, and replayed without the cost of launching them.

A recording repeats the same kernels on the same memory, so a step's numbers are copied into
buffers that stay where they are, and its batch is filled up to the next size that was recorded.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np
import torch

from workers.inference.engine.cuda.plan import StepPlan, page_tables, table_width
from workers.inference.engine.kv_cache import PAGE_SIZE, KVCache, num_pages_for
from workers.inference.engine.scheduler import Batch
from workers.inference.engine.transfer import to_device

Compute = Callable[[], torch.Tensor]
# Runs a computation and returns one that repeats it and returns the same memory, filled anew.
Recorder = Callable[[Compute], Compute]
# Logits of token ids [B] at positions [B].
DecodeStep = Callable[[torch.Tensor, torch.Tensor, StepPlan], torch.Tensor]

_FIRST_SIZES = (1, 2, 4, 8, 16, 24, 32)
_NUM_WARM_UPS = 2  # runs before a recording: kernels compile and libraries take their memory


def batch_sizes(max_num_seqs: int) -> list[int]:
    """The sizes to record, up to `max_num_seqs` itself: close together where batches are small."""
    sizes = [*_FIRST_SIZES]
    while sizes[-1] < max_num_seqs:
        sizes.append(sizes[-1] + (16 if sizes[-1] < 128 else 32 if sizes[-1] < 256 else 64))
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


class DecodeBuffers:
    """The numbers of one decode step, in memory that stays where it is.

    The rows that fill a batch up write to a page that belongs to nobody, and see only that.
    """

    def __init__(self, cache: KVCache, *, max_num_seqs: int, context_length: int) -> None:
        device = cache.keys.device
        self._cache = cache
        self._spare_page = cache.num_pages - 1
        width = table_width(num_pages_for(context_length))
        # Token ids, positions, slots and contexts.
        self._numbers = torch.zeros(4, max_num_seqs, dtype=torch.int64, device=device)
        self._tables = torch.zeros(max_num_seqs, width, dtype=torch.int32, device=device)

    def fill(self, batch: Batch, size: int) -> None:
        """Put a batch of decodes into the first `size` rows."""
        chunks, num = batch.chunks, len(batch.chunks)
        numbers = np.zeros((4, size), dtype=np.int64)
        tables = page_tables(
            [chunk.request.pages[: num_pages_for(chunk.end)] for chunk in chunks]
            + [[self._spare_page]] * (size - num)
        )
        positions = numbers[1]
        numbers[0, :num] = [chunk.request.token_ids[chunk.start] for chunk in chunks]
        positions[:num] = [chunk.start for chunk in chunks]
        pages = tables[np.arange(size), positions // PAGE_SIZE]
        numbers[2] = pages.astype(np.int64) * PAGE_SIZE + positions % PAGE_SIZE
        numbers[3] = positions + 1
        self._put(self._numbers[:, :size], torch.from_numpy(numbers))
        self._put(self._tables[:size, : tables.shape[1]], torch.from_numpy(tables))

    def token_ids(self, size: int) -> torch.Tensor:
        return self._numbers[0, :size]

    def positions(self, size: int) -> torch.Tensor:
        return self._numbers[1, :size]

    def plan(self, size: int, num_splits: int) -> StepPlan:
        return StepPlan(
            cache=self._cache,
            slots=self._numbers[2, :size],
            tables=self._tables[:size],
            contexts=self._numbers[3, :size],
            num_decodes=size,
            num_splits=num_splits,
        )

    def _put(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(to_device(source, target.device), non_blocking=True)


class DecodeGraphs:
    """Recorded decode steps. The device thread only."""

    def __init__(
        self,
        step: DecodeStep,
        buffers: DecodeBuffers,
        *,
        sizes: Sequence[int],
        num_splits: Callable[[int], int],
        record: Recorder,
    ) -> None:
        """Records nothing yet. `num_splits` of a number of decodes."""
        self.sizes = sorted(sizes)
        self._step = step
        self._buffers = buffers
        self._num_splits = num_splits
        self._record = record
        self._replays: dict[int, Compute] = {}

    def record_all(self, on_recorded: Callable[[], None]) -> None:
        """Record every size, the largest first: the others find the memory it took."""
        for size in reversed(self.sizes):
            self._buffers.fill(Batch(()), size)
            self._replays[size] = self._record(self._computation(size))
            on_recorded()

    def run(self, batch: Batch) -> torch.Tensor:
        """Logits [decodes, vocab] of a batch of decodes, valid until the next run."""
        num = len(batch.chunks)
        size = self.size_for(num)
        self._buffers.fill(batch, size)
        return self._replays[size]()[:num]

    def size_for(self, num_decodes: int) -> int:
        """The smallest recorded size that holds so many."""
        return self.sizes[bisect_left(self.sizes, num_decodes)]

    def _computation(self, size: int) -> Compute:
        buffers = self._buffers
        token_ids, positions = buffers.token_ids(size), buffers.positions(size)
        plan = buffers.plan(size, self._num_splits(size))
        return lambda: self._step(token_ids, positions, plan)


class CudaRecorder:
    """Records into CUDA graphs that share their memory: never more than one of them runs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Compute) -> Compute:
        self._warm_up(compute)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = compute()

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay

    def _warm_up(self, compute: Compute) -> None:
        """On a stream of its own, as recording is."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_NUM_WARM_UPS):
                compute()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        torch.cuda.synchronize(self._device)
