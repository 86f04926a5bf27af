"""The model's own forward pass, with which every other way to compute it is compared at load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from transformers import PreTrainedModel

from workers.inference.engine.request import Request
from workers.inference.engine.scheduler import Chunk


@dataclass(frozen=True, slots=True)
class PagedTokens:
    """As much of a request as a step reads."""

    token_ids: list[int]
    pages: list[int]

    def chunk(self, start: int, num_tokens: int) -> Chunk:
        return Chunk(cast(Request, self), start, num_tokens)


def probe_tokens(model: PreTrainedModel, num_tokens: int) -> list[int]:
    """The same random token ids every time."""
    vocab_size = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    tokens: list[int] = torch.randint(0, vocab_size, (num_tokens,), generator=generator).tolist()
    return tokens


@torch.inference_mode()
def own_logits(model: PreTrainedModel, token_ids: list[int]) -> torch.Tensor:
    """Logits [tokens, vocab], float32, of transformers' plainest attention."""
    ours = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        tokens = torch.tensor([token_ids], device=model.device)
        output = model(input_ids=tokens, use_cache=False)
    finally:
        model.set_attn_implementation(ours)
    logits: torch.Tensor = output.logits[0]
    return logits.float()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """|found - expected| / |expected|; NaN where either is none. A wrong formula gives about 1."""
    return float((found - expected).norm() / expected.norm())
