"""One model on one device: runs batches and samples from them. Tensors live here and below."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from workers.inference.engine.detokenizer import Decoder, TokenizerDecoder
from workers.inference.engine.errors import EngineError
from workers.inference.engine.executor import SampledToken
from workers.inference.engine.forward import Forward
from workers.inference.engine.grammar import GrammarCompiler
from workers.inference.engine.kv_cache import PAGE_SIZE
from workers.inference.engine.model import ModelText
from workers.inference.engine.protocol import (
    EngineRequest,
    ModelInfo,
    SamplingParams,
    TokenLogprobs,
)
from workers.inference.engine.request import Grammar, Request
from workers.inference.engine.sampler import sample
from workers.inference.engine.sampling.logprobs import prompt_logprobs
from workers.inference.engine.scheduler import Batch


class ModelRunner:
    """Executor over a model's forward pass, its tokenizer and the sampler."""

    def __init__(
        self, info: ModelInfo, text: ModelText, forward: Forward, *, max_num_seqs: int
    ) -> None:
        self.info = info
        self.eos_token_ids = text.eos_token_ids
        self.max_num_seqs = max_num_seqs
        self.page_size = PAGE_SIZE
        self.num_pages = forward.num_pages
        self._tokenizer = text.tokenizer
        self._forward = forward
        self._grammars = GrammarCompiler(text.tokenizer, info.vocab_size, text.eos_token_ids)

    def decoder(self, sampling: SamplingParams) -> Decoder:
        return TokenizerDecoder(self._tokenizer, skip_special_tokens=sampling.skip_special_tokens)

    def seed(self, request: EngineRequest) -> int | None:
        return request.sampling.seed

    def grammar(self, text: str) -> Grammar:
        return self._grammars.compile(text)

    @torch.inference_mode()
    def run(self, batch: Batch) -> torch.Tensor:
        """Logits [num_sampled + num_scored, vocab_size], float32. Raises EngineError when memory
        runs out.
        """
        try:
            return self._forward.run(batch)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise EngineError("out_of_memory", str(error), retryable=True) from error

    @torch.inference_mode()
    def sample(
        self, scores: torch.Tensor, requests: Sequence[Request]
    ) -> Sequence[SampledToken | EngineError]:
        return sample(scores[: len(requests)], requests)

    @torch.inference_mode()
    def score(self, scores: torch.Tensor, batch: Batch) -> Sequence[Sequence[TokenLogprobs]]:
        return prompt_logprobs(scores[len(batch.sampled) :], batch.scored)
