"""A forward pass in compiled code, on the CPU; proven against the model's own when it is built."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import torch

from workers.inference.engine.kv_cache import KVCache, num_pages_for
from workers.inference.engine.model import LoadedModel
from workers.inference.engine.native.library import Runner, StepInput
from workers.inference.engine.native.weights import NativeWeights, UnsupportedModelError
from workers.inference.engine.proof import CUT, Proof, ProofError
from workers.inference.engine.scheduler import Batch


class NativeForward:
    """Forward over the compiled step. The device thread only."""

    def __init__(self, weights: NativeWeights, cache: KVCache) -> None:
        self._weights = weights
        self._cache = cache
        weights.use_cache(cache.keys, cache.values)
        self._runner = Runner(weights.struct)
        # One buffer for every step: fresh memory of this size costs more than an argmax over it.
        self._logits = torch.empty(0, weights.struct.vocab)

    @property
    def num_pages(self) -> int:
        return self._cache.num_pages

    def run(self, batch: Batch) -> torch.Tensor:
        """Raises MemoryError."""
        token_ids, sequences, pages, output_rows = array("i"), array("i"), array("i"), array("i")
        for chunk in batch.chunks:
            request = chunk.request
            sequences.extend((len(token_ids), chunk.num_tokens, chunk.start, len(pages)))
            token_ids.extend(request.token_ids[chunk.start : chunk.end])
            pages.extend(request.pages)
            if chunk.is_last:
                output_rows.append(len(token_ids) - 1)
        output_rows.extend(batch.scored_rows)
        return self._compute(token_ids, sequences, pages, output_rows)

    def all_logits(self, token_ids: list[int]) -> torch.Tensor:
        """Logits [tokens, vocab] of one sequence from its start, in the cache's first pages."""
        num = len(token_ids)
        pages = array("i", range(num_pages_for(num)))
        sequence = array("i", (0, num, 0, 0))
        return self._compute(array("i", token_ids), sequence, pages, array("i", range(num)))

    def _compute(
        self, token_ids: array[int], sequences: array[int], pages: array[int], outputs: array[int]
    ) -> torch.Tensor:
        logits = self._buffer(len(outputs))
        step = StepInput(
            num_rows=len(token_ids),
            num_sequences=len(sequences) // 4,
            num_outputs=len(outputs),
            token_ids=token_ids.buffer_info()[0],
            sequences=sequences.buffer_info()[0],
            pages=pages.buffer_info()[0],
            output_rows=outputs.buffer_info()[0],
            logits=logits.data_ptr(),
        )
        self._runner.run(step)
        return logits

    def _buffer(self, num_rows: int) -> torch.Tensor:
        if num_rows > len(self._logits):
            self._logits = torch.empty(num_rows, self._weights.struct.vocab)
        return self._logits[:num_rows]


@torch.inference_mode()
def read_weights(
    loaded: LoadedModel, proof: Proof, *, on_layer: Callable[[], None] = lambda: None
) -> NativeWeights:
    """Pack a model's weights, taking them away from the model layer by layer to save memory.

    The result has passed the proof. Raises UnsupportedModelError for a model that the compiled step
    can't compute, BuildError without a compiler; the model is then spoilt.
    """
    weights = NativeWeights(loaded.model, loaded.info.context_length, on_layer=on_layer)
    cache = KVCache(loaded.kv_shape, num_pages=proof.num_pages, device=torch.device("cpu"))
    try:
        with weights.cut_windows(CUT, proof.is_cut):
            proof.check(NativeForward(weights, cache))
    except ProofError as error:
        raise UnsupportedModelError(str(error)) from error
    return weights
