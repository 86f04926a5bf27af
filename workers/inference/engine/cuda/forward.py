"""A forward pass through transformers' modules with our attention kernels and recorded decodes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from workers.inference.engine.cuda.attention import use_kernels
from workers.inference.engine.cuda.graphs import (
    DecodeBuffers,
    DecodeGraphs,
    Recorder,
    batch_sizes,
)
from workers.inference.engine.cuda.launch import choose_num_splits, tokens_per_tile
from workers.inference.engine.cuda.plan import StepPlan, lay_out, put_on_device
from workers.inference.engine.kv_cache import KVCache
from workers.inference.engine.scheduler import Batch


class CudaForward:
    """Forward over a transformers model. The last page of `cache` is kept for rows that fill up."""

    def __init__(
        self, model: PreTrainedModel, cache: KVCache, *, context_length: int, num_cores: int
    ) -> None:
        """`num_cores`: multiprocessors of the device."""
        use_kernels(model)
        config = model.config.get_text_config()
        _, _, num_kv_heads, _, head_dim = cache.keys.shape
        self._model = model
        self._cache = cache
        self._context_length = context_length
        self._num_cores = num_cores
        self._num_kv_heads = num_kv_heads
        self._tokens_per_tile = tokens_per_tile(
            config.num_attention_heads, num_kv_heads, head_dim, cache.keys.dtype
        )
        self._graphs: DecodeGraphs | None = None

    @property
    def num_pages(self) -> int:
        return self._cache.num_pages - 1

    @property
    def recorded_sizes(self) -> list[int]:
        """Numbers of decodes that have a recording."""
        return self._graphs.sizes if self._graphs else []

    @torch.inference_mode()
    def record(
        self, recorder: Recorder, *, max_num_seqs: int, on_recorded: Callable[[], None]
    ) -> None:
        """Let steps of decodes alone be replayed from now on. Raises what recording raises."""
        graphs = DecodeGraphs(
            self._decode,
            DecodeBuffers(
                self._cache, max_num_seqs=max_num_seqs, context_length=self._context_length
            ),
            sizes=batch_sizes(max_num_seqs),
            num_splits=self._num_splits,
            record=recorder,
        )
        graphs.record_all(on_recorded)
        self._graphs = graphs

    def forget_recordings(self) -> None:
        """Compute every step as it comes."""
        self._graphs = None

    @torch.inference_mode()
    def run(self, batch: Batch) -> torch.Tensor:
        if self._graphs is not None and batch.num_decodes == len(batch.chunks):
            return self._graphs.run(batch)
        layout = lay_out(batch, self._tokens_per_tile)
        num_splits = self._num_splits(max(1, batch.num_decodes))
        step = put_on_device(layout, self._cache, num_splits)
        return self._compute(step.token_ids, step.positions, step.plan, step.sampled)

    def _decode(
        self, token_ids: torch.Tensor, positions: torch.Tensor, plan: StepPlan
    ) -> torch.Tensor:
        return self._compute(token_ids, positions, plan, 0)  # 0: the logits of all rows

    def _compute(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        plan: StepPlan,
        sampled: torch.Tensor | int,
    ) -> torch.Tensor:
        # Packed: all tokens of all requests in one row, so that linear layers see no padding.
        output = self._model(
            input_ids=token_ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=sampled,
            step_plan=plan,
        )
        logits: torch.Tensor = output.logits[0]
        return logits.float()

    def _num_splits(self, num_decodes: int) -> int:
        num_programs = num_decodes * self._num_kv_heads
        return choose_num_splits(num_programs, self._num_cores, self._context_length)
