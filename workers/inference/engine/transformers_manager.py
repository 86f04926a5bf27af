"""transformers' ContinuousBatchingManager: built, fed, and started again after a fault.

The only file that knows that library's API. Its sampling is per engine: greedy alone, or drawn
with a temperature, top_k and top_p for each request, where greedy means top_k = 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.continuous_api import OutputRouter

from workers.inference.engine.config import (
    DEFAULT_MAX_NUM_BATCHED_TOKENS,
    DEFAULT_MAX_NUM_BATCHED_TOKENS_CUDA,
    DEFAULT_MAX_NUM_SEQS,
    EngineConfig,
)
from workers.inference.engine.errors import EngineError
from workers.inference.engine.memory import free_bytes
from workers.inference.engine.model import LoadedModel
from workers.inference.engine.protocol import SamplingParams

PAGE_SIZE = 256  # tokens; the library's default, and its attention is slower with small pages
# The faster of the two that a CPU has. On a GPU the library takes flash attention if installed.
_ATTENTION = {"cpu": "paged|eager", "cuda": "sdpa"}
_FREE_SHARE = 0.15  # of its blocks the library keeps free: below it admits nobody
_STOP_TIMEOUT_S = 30.0
_NO_EOS = -1
# Every request names its own values; these only make the library build its per-request filters.
_DRAWN = {"do_sample": True, "temperature": 0.5, "top_k": 50, "top_p": 0.5}

# Outputs of one step, on the library's thread.
Deliver = Callable[[Sequence[Any]], None]


class Manager:
    """The library's manager with a running thread. Methods are thread-safe unless they say so."""

    def __init__(
        self,
        loaded: LoadedModel,
        config: EngineConfig,
        *,
        attention: str | None,
        is_greedy_only: bool,
        deliver: Deliver,
    ) -> None:
        """Raises EngineError for a model or a size that the library can't serve."""
        self.loaded = loaded
        self._is_greedy_only = is_greedy_only
        self._num_steps_before = 0  # of earlier threads
        self._manager = _init(loaded, config, attention, is_greedy_only)
        self._manager.output_router = _StepRouter(deliver)  # before warmup(), which passes it on
        _warm_up(self._manager)
        self._manager.start()

    @property
    def num_steps(self) -> int:
        """Since the start; only grows."""
        return self._num_steps_before + self._num_steps

    @property
    def num_running(self) -> int:
        processor = self._manager.batch_processor
        return len(processor.scheduler.active_requests) if processor else 0

    @property
    def kv_cache_usage(self) -> float:
        """0 to 1."""
        processor = self._manager.batch_processor
        return 1.0 - float(processor.cache.compute_free_capacity()) if processor else 0.0

    def check(self, sampling: SamplingParams) -> None:
        """Raise EngineError `unsupported` for what the library can't do for one request."""
        unsupported = {
            "min_p": sampling.min_p > 0,
            "presence_penalty": sampling.presence_penalty != 0,
            "frequency_penalty": sampling.frequency_penalty != 0,
            "repetition_penalty": sampling.repetition_penalty != 1,
            "logit_bias": bool(sampling.logit_bias),
            "logprobs": sampling.logprobs is not None,
            "prompt_logprobs": sampling.prompt_logprobs is not None,
            "max_tokens": sampling.max_tokens < 1,
            "n": sampling.n > 1,
            "seed": sampling.seed is not None and sampling.temperature > 0,
            "temperature": self._is_greedy_only and sampling.temperature > 0,
        }
        if names := [name for name, is_asked in unsupported.items() if is_asked]:
            message = f"transformers' continuous batching does not support {', '.join(names)}"
            raise EngineError("unsupported", message)

    def add(
        self,
        request_id: str,
        token_ids: Sequence[int],
        *,
        max_tokens: int,
        sampling: SamplingParams,
    ) -> None:
        """Queue a generation; it ends after `max_tokens` or by cancel(), never by a token."""
        accepted = self._manager.add_request(
            list(token_ids),
            request_id=request_id,
            max_new_tokens=max_tokens,
            eos_token_id=_NO_EOS,
            streaming=True,
            **self._filters(sampling),
        )
        if accepted is None:
            raise EngineError("engine_error", "the library's thread is gone", retryable=True)

    def cancel(self, request_id: str) -> None:
        """Takes effect before the next step. Unknown ids are ignored."""
        self._manager.cancel_request(request_id)

    def restart_if_dead(self) -> bool:
        """The library's thread dies of any exception; it has failed all its requests by then.

        Called by the thread that adds requests. Says whether that was so.
        """
        if self._manager.background_thread_status.can_accept_new_requests() is None:
            return False
        self._manager.join(time.perf_counter(), timeout=_STOP_TIMEOUT_S)
        num_steps, self._manager.current_batch = self._num_steps, 0  # never counted twice
        self._num_steps_before += num_steps
        self._manager.start()
        return True

    def stop(self) -> None:
        """End the thread and free the cache."""
        self._manager.stop(block=True, timeout=_STOP_TIMEOUT_S, hard_stop=True)

    @property
    def _num_steps(self) -> int:
        return int(getattr(self._manager, "current_batch", 0))  # absent before the first loop

    def _filters(self, sampling: SamplingParams) -> dict[str, Any]:
        if self._is_greedy_only:
            return {}
        if sampling.temperature == 0:
            return {"temperature": 1.0, "top_k": 1, "top_p": 1.0}
        vocab_size = self.loaded.info.vocab_size
        return {
            "temperature": float(sampling.temperature),
            "top_k": min(sampling.top_k or vocab_size, vocab_size),
            "top_p": float(sampling.top_p),
        }


class _StepRouter(OutputRouter):
    """Where the library delivers: here, each step's outputs together."""

    def __init__(self, deliver: Deliver) -> None:
        super().__init__()
        self._deliver = deliver

    def deliver(self, output: Any) -> None:
        self._deliver([output])

    def deliver_batch(self, outputs: Sequence[Any]) -> None:
        self._deliver(outputs)


def _init(
    loaded: LoadedModel, config: EngineConfig, attention: str | None, is_greedy_only: bool
) -> Any:
    model: Any = loaded.model
    _check_attention(model.config.get_text_config())
    model.set_attn_implementation(attention or _ATTENTION[model.device.type])
    drawn = {} if is_greedy_only else _DRAWN
    generation = GenerationConfig(eos_token_id=_NO_EOS, **drawn)
    max_num_seqs = config.max_num_seqs or DEFAULT_MAX_NUM_SEQS
    batching = ContinuousBatchingConfig(
        page_size=PAGE_SIZE,
        num_blocks=_num_blocks(loaded, config, max_num_seqs),
        max_memory_percent=config.kv_memory_share,
        max_batch_tokens=config.max_num_batched_tokens or _default_budget(model.device),
        max_requests_per_batch=max_num_seqs,
        allow_block_sharing=False,  # it knows no salt: tenants could time each other
        per_request_processors=not is_greedy_only,
    )
    return model.init_continuous_batching(generation, batching)


def _warm_up(manager: Any) -> None:
    """Build the cache in this thread, where its errors can be told."""
    try:
        manager.warmup()
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise EngineError("out_of_memory", str(error)) from error
    except Exception as error:  # the library's own: shapes and layers that it doesn't know
        raise EngineError("model_unsupported", f"continuous batching: {error}") from error


def _num_blocks(loaded: LoadedModel, config: EngineConfig, max_num_seqs: int) -> int | None:
    """Blocks that fit, at most what `max_num_seqs` full contexts need.

    None on a GPU, where the library measures for itself; on a CPU it finds no memory unless told.
    Raises EngineError where not one full context fits.
    """
    device = loaded.model.device
    if device.type != "cpu" and config.kv_cache_bytes is None:
        return None
    num_bytes = config.kv_cache_bytes or int(free_bytes(device) * config.kv_memory_share)
    block_bytes = loaded.kv_shape.bytes_per_token * PAGE_SIZE
    fitting = num_bytes // block_bytes
    least = -(-loaded.info.context_length // PAGE_SIZE)
    if fitting < least:
        message = (
            f"one context of {loaded.info.context_length} tokens takes {least} blocks of "
            f"{block_bytes:,} bytes of KV cache, {fitting} are free for it"
        )
        raise EngineError("out_of_memory", message)
    return min(fitting, 1 + int(max_num_seqs * least / (1 - _FREE_SHARE)))


def _default_budget(device: torch.device) -> int:
    is_cpu = device.type == "cpu"
    return DEFAULT_MAX_NUM_BATCHED_TOKENS if is_cpu else DEFAULT_MAX_NUM_BATCHED_TOKENS_CUDA


def _check_attention(config: Any) -> None:
    """Its paged attention ignores this silently."""
    if getattr(config, "attn_logit_softcapping", None):
        raise EngineError("model_unsupported", "attention with softcap is not supported")
