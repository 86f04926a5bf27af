"""Decides at load how a model's steps run on a CUDA device, and logs why where it is not the best.

Triton is imported when a model is loaded: this module alone is safe without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
import torch

from workers.inference.engine.attention import ATTENTION_NAME
from workers.inference.engine.cuda.graphs import batch_sizes
from workers.inference.engine.forward import Forward
from workers.inference.engine.kv_cache import KVCache
from workers.inference.engine.model import LoadedModel
from workers.inference.engine.proof import Proof
from workers.inference.engine.torch_forward import TorchForward

if TYPE_CHECKING:
    from workers.inference.engine.cuda.forward import CudaForward
    from workers.inference.engine.cuda.graphs import Recorder

NUM_SPARE_PAGES = 1  # of a cache: the rows that fill up a recorded batch write there

log = structlog.get_logger(__name__)


def choose_forward(
    loaded: LoadedModel,
    cache: KVCache,
    *,
    proof: Proof,
    recorder: Recorder | None,
    max_num_seqs: int,
    on_recorded: Callable[[], None],
) -> Forward:
    """Our kernels if they prove themselves, else transformers' modules with torch's attention.

    With a `recorder` steps of decodes are recorded too. Raises ProofError or EngineError where not
    even torch's attention gives the model's logits; and whatever a device raises that is done for:
    an illegal access, for one, leaves nothing to fall back on.
    """
    name = loaded.info.name
    try:
        forward = _kernel_forward(loaded, cache, proof, max_num_seqs)
    except Exception as error:  # Triton, its compiler, the driver: each fails in its own way
        log.warning("cuda_kernels_unavailable", model=name, reason=_reason(error))
        loaded.model.set_attn_implementation(ATTENTION_NAME)
        plain = TorchForward(loaded.model, cache)
        proof.check(plain)
        return plain
    if recorder is not None:
        _record(
            forward, loaded, proof, recorder, max_num_seqs=max_num_seqs, on_recorded=on_recorded
        )
    log.info("cuda_kernels_ready", model=name, recorded_sizes=forward.recorded_sizes)
    return forward


def _record(
    forward: CudaForward,
    loaded: LoadedModel,
    proof: Proof,
    recorder: Recorder,
    *,
    max_num_seqs: int,
    on_recorded: Callable[[], None],
) -> None:
    from workers.inference.engine.cuda.check import check_decodes  # noqa: PLC0415

    try:
        forward.record(recorder, max_num_seqs=max_num_seqs, on_recorded=on_recorded)
        check_decodes(forward, loaded.model, forward.recorded_sizes)
    except Exception as error:  # a model that waits for the device in its forward pass, for one
        log.warning("cuda_graphs_unavailable", model=loaded.info.name, reason=_reason(error))
        forward.forget_recordings()
        proof.check(forward)  # a recording that broke off may leave the device odd


def _kernel_forward(
    loaded: LoadedModel, cache: KVCache, proof: Proof, max_num_seqs: int
) -> CudaForward:
    from workers.inference.engine.cuda.check import (  # noqa: PLC0415
        check_decodes,
        check_kernels,
    )
    from workers.inference.engine.cuda.forward import CudaForward  # noqa: PLC0415

    check_kernels(loaded.model, loaded.kv_shape)
    forward = CudaForward(
        loaded.model,
        cache,
        context_length=loaded.info.context_length,
        num_cores=_num_cores(cache.keys.device),
    )
    proof.check(forward)
    check_decodes(forward, loaded.model, batch_sizes(max_num_seqs))
    return forward


def _num_cores(device: torch.device) -> int:
    if device.type != "cuda":
        return torch.get_num_threads()
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
