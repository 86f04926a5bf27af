"""The real engine: loads its models on the device thread and hands them to the step loop."""

from __future__ import annotations

import torch

from workers.inference.engine.attention import LENGTH_BUCKET
from workers.inference.engine.config import (
    DEFAULT_MAX_NUM_BATCHED_TOKENS,
    DEFAULT_MAX_NUM_BATCHED_TOKENS_CUDA,
    DEFAULT_MAX_NUM_SEQS,
    EngineConfig,
)
from workers.inference.engine.engine import BatchEngine, OnProgress
from workers.inference.engine.errors import EngineError
from workers.inference.engine.kv_cache import KVCache, fit_num_slots, free_bytes
from workers.inference.engine.model import LoadedModel, choose_device, load_model
from workers.inference.engine.model_runner import ModelRunner
from workers.inference.engine.protocol import EngineRequest, SamplingParams
from workers.inference.engine.request import Request
from workers.inference.engine.scheduler import Batch, Chunk

_WARM_UP_TOKENS = 16


class MillraceEngine(BatchEngine):
    """Continuous batching over transformers modules, on the CPU or one CUDA device."""

    def __init__(self, config: EngineConfig, on_progress: OnProgress | None = None) -> None:
        self._config = config
        self._device = choose_device(config.device)
        super().__init__(
            self._load_runners,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens or _default_budget(self._device),
            on_progress=on_progress,
        )

    def _load_runners(self, report: OnProgress) -> list[ModelRunner]:
        config = self._config
        if not config.models:
            raise EngineError("model_load_failed", "the engine has no models to load")
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        device = self._device
        num_models = len(config.models)
        loaded = []
        for i, spec in enumerate(config.models):
            report(spec.name, i / num_models)
            loaded.append(load_model(spec, device, is_hub_allowed=config.is_hub_allowed))
        share = int(free_bytes(device) * config.kv_memory_share) // num_models
        runners = [ModelRunner(model, self._cache(model, device, share)) for model in loaded]
        for runner in runners:
            _warm_up(runner)
        report("ready", 1.0)
        return runners

    def _cache(self, loaded: LoadedModel, device: torch.device, num_bytes: int) -> KVCache:
        capacity = -(-loaded.info.context_length // LENGTH_BUCKET) * LENGTH_BUCKET
        num_slots = fit_num_slots(
            loaded.kv_shape,
            wanted=self._config.max_num_seqs,
            default=DEFAULT_MAX_NUM_SEQS,
            capacity=capacity,
            num_bytes=num_bytes,
        )
        return KVCache(loaded.kv_shape, num_slots=num_slots, capacity=capacity, device=device)


def _default_budget(device: torch.device) -> int:
    is_cuda = device.type == "cuda"
    return DEFAULT_MAX_NUM_BATCHED_TOKENS_CUDA if is_cuda else DEFAULT_MAX_NUM_BATCHED_TOKENS


def _warm_up(runner: ModelRunner) -> None:
    """One forward pass: an unsupported attention fails here, not with the first request."""
    num_tokens = min(_WARM_UP_TOKENS, runner.info.context_length - 1)
    request = Request(
        EngineRequest(
            request_id="warm-up",
            model=runner.info.name,
            prompt_token_ids=[0] * num_tokens,
            sampling=SamplingParams(max_tokens=1),
        ),
        decoder=runner.decoder(),
        eos_token_ids=runner.eos_token_ids,
        context_length=runner.info.context_length,
    )
    request.slot = 0
    runner.run(Batch((Chunk(request, 0, num_tokens),)))
