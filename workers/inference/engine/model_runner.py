"""One model on one device: runs batches and samples from them. Tensors live here and below."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from workers.inference.engine.attention import plan_step
from workers.inference.engine.detokenizer import Decoder, TokenizerDecoder
from workers.inference.engine.errors import EngineError
from workers.inference.engine.kv_cache import KVCache
from workers.inference.engine.model import LoadedModel
from workers.inference.engine.protocol import EngineRequest, ModelInfo
from workers.inference.engine.request import Request
from workers.inference.engine.sampler import sample
from workers.inference.engine.scheduler import Batch


class ModelRunner:
    """Executor over a loaded transformers model and its KV cache."""

    def __init__(self, loaded: LoadedModel, cache: KVCache) -> None:
        self._loaded = loaded
        self._cache = cache

    @property
    def info(self) -> ModelInfo:
        return self._loaded.info

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self._loaded.eos_token_ids

    @property
    def max_num_seqs(self) -> int:
        return self._cache.num_slots

    def decoder(self) -> Decoder:
        return TokenizerDecoder(self._loaded.tokenizer)

    def seed(self, request: EngineRequest) -> int | None:
        return request.sampling.seed

    @torch.inference_mode()
    def run(self, batch: Batch) -> torch.Tensor:
        """Logits [num_sampled, vocab_size], float32. Raises EngineError when memory runs out."""
        try:
            return self._forward(batch)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise EngineError("out_of_memory", str(error), retryable=True) from error

    @torch.inference_mode()
    def sample(
        self, scores: torch.Tensor, requests: Sequence[Request]
    ) -> Sequence[int | EngineError]:
        return sample(scores, requests)

    def _forward(self, batch: Batch) -> torch.Tensor:
        for move in batch.moves:
            self._cache.move(move)
        plan = plan_step(batch, self._cache)
        # Packed: all tokens of all requests in one row, so that linear layers see no padding.
        output = self._loaded.model(
            input_ids=self._tensor(_token_ids(batch)).unsqueeze(0),
            position_ids=plan.positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=self._tensor(_sampled_rows(batch)),
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
