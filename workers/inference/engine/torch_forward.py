"""A forward pass through transformers' own modules: any device, any supported model, any dtype."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from workers.inference.engine.attention import plan_step
from workers.inference.engine.kv_cache import KVCache
from workers.inference.engine.scheduler import Batch


class TorchForward:
    """Forward over a transformers model whose attention is attention.paged_attention."""

    def __init__(self, model: PreTrainedModel, cache: KVCache) -> None:
        self._model = model
        self._cache = cache

    @property
    def num_pages(self) -> int:
        return self._cache.num_pages

    @torch.inference_mode()
    def run(self, batch: Batch) -> torch.Tensor:
        plan = plan_step(batch, self._cache)
        # Packed: all tokens of all requests in one row, so that linear layers see no padding.
        output = self._model(
            input_ids=self._tensor(_token_ids(batch)).unsqueeze(0),
            position_ids=plan.positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=self._tensor(_sampled_rows(batch) + batch.scored_rows),
            step_plan=plan,
        )
        logits: torch.Tensor = output.logits[0]
        return logits.float()

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._cache.keys.device)


def _token_ids(batch: Batch) -> list[int]:
    return [t for chunk in batch.chunks for t in chunk.request.token_ids[chunk.start : chunk.end]]


def _sampled_rows(batch: Batch) -> list[int]:
    """The packed rows whose logits are wanted: the last token of each request that gets one."""
    rows, end = [], 0
    for chunk in batch.chunks:
        end += chunk.num_tokens
        if chunk.is_last:
            rows.append(end - 1)
    return rows
