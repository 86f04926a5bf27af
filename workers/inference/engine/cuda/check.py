"""Proves on the device at hand, at every load, that it computes what it should.

First the kernels alone, in the model's shapes, against plain arithmetic on long sequences; then the
whole model by the proof of every way (proof.py), and every size of recorded decodes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

from workers.inference.engine.cuda.forward import CudaForward
from workers.inference.engine.cuda.launch import MAX_HEAD_DIM, Formula
from workers.inference.engine.cuda.trial import Span, Trial
from workers.inference.engine.kv_cache import KVShape, num_pages_for
from workers.inference.engine.proof import (
    PagedTokens,
    own_logits,
    probe_tokens,
    relative_error,
)
from workers.inference.engine.scheduler import Batch

# Around the ends of pages and blocks, and beyond many of them.
_DECODES = (Span(0, 1), Span(15, 1), Span(16, 1), Span(255, 1), Span(700, 1))
_PREFILLS = (Span(0, 33), Span(250, 70))
_SPLITS = (1, 4)
# Largest relative errors. Wrong formulas give about 1; these are some times what rounding gives.
_KERNEL_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 0.005}
_LOGIT_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.03}
_PROBE_TOKENS = 40


class CheckError(Exception):
    """The kernels can't serve the model, or the device computes something else than it should."""


def check_kernels(model: PreTrainedModel, shape: KVShape) -> None:
    """Decodes, cut into splits and whole, beside prefills. Raises CheckError."""
    num_heads = model.config.get_text_config().num_attention_heads
    if shape.head_dim > MAX_HEAD_DIM or num_heads % shape.num_kv_heads:
        raise CheckError(f"no kernels for {num_heads} heads of {shape.head_dim}")
    for formula in formulas_of(model, shape.head_dim):
        for num_splits in _SPLITS:
            trial = Trial(
                num_heads,
                _one_layer(shape),
                formula,
                (*_DECODES, *_PREFILLS),
                num_decodes=len(_DECODES),
                num_splits=num_splits,
            )
            _compare("the kernels", *trial.run(model.device), _KERNEL_TOLERANCE[shape.dtype])


def formulas_of(model: PreTrainedModel, head_dim: int) -> set[Formula]:
    """What the attention of the model's layers computes, as its config tells."""
    config = model.config.get_text_config()
    softcap = getattr(config, "attn_logit_softcapping", None) or 0.0
    windows = {0, getattr(config, "sliding_window", None) or 0}
    return {Formula(head_dim**-0.5, window, softcap) for window in windows}


def check_decodes(forward: CudaForward, model: PreTrainedModel, sizes: Iterable[int]) -> None:
    """Steps of one decode less than each size, so that one of two is filled up. Raises CheckError.

    What has not been compiled before is compiled now, and not with the first requests.
    """
    token_ids = probe_tokens(model, _PROBE_TOKENS)
    expected = own_logits(model, token_ids)[-1]
    probe, start = _probe(token_ids), len(token_ids) - 1
    forward.run(Batch((probe.chunk(0, start),)))
    for size in sizes:
        # All of them write the same to the same place.
        decodes = (probe.chunk(start, 1),) * max(1, size - 1)
        for found in forward.run(Batch(decodes, num_decodes=len(decodes))):
            _compare(
                f"a step of {len(decodes)} decodes", found, expected, _LOGIT_TOLERANCE[model.dtype]
            )


def _probe(token_ids: list[int]) -> PagedTokens:
    """On pages in falling order."""
    return PagedTokens(token_ids, list(reversed(range(num_pages_for(len(token_ids))))))


def _one_layer(shape: KVShape) -> KVShape:
    return KVShape(1, shape.num_kv_heads, shape.head_dim, shape.dtype)


def _compare(what: str, found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    error = relative_error(found.float(), expected)
    if not error <= tolerance:  # NaN is an error too
        raise CheckError(f"{what} differs from what is right by {error:.3g}")
