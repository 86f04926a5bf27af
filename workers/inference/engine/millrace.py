"""The real engine: loads its models on the device thread and hands them to the step loop."""

from __future__ import annotations

import structlog
import torch

from workers.inference.engine.config import (
    DEFAULT_MAX_NUM_BATCHED_TOKENS,
    DEFAULT_MAX_NUM_BATCHED_TOKENS_CUDA,
    DEFAULT_MAX_NUM_SEQS,
    EngineConfig,
    ModelSpec,
)
from workers.inference.engine.cuda.graphs import CudaRecorder
from workers.inference.engine.cuda.load import NUM_SPARE_PAGES, choose_forward
from workers.inference.engine.engine import BatchEngine, OnProgress
from workers.inference.engine.errors import EngineError
from workers.inference.engine.forward import Forward
from workers.inference.engine.kv_cache import KVCache, fit_num_pages
from workers.inference.engine.load_progress import OnShare
from workers.inference.engine.memory import free_bytes
from workers.inference.engine.model import LoadedModel, choose_device, load_model
from workers.inference.engine.model_runner import ModelRunner
from workers.inference.engine.native.build import BuildError, built_library
from workers.inference.engine.native.forward import NativeForward, read_weights
from workers.inference.engine.native.weights import NativeWeights, UnsupportedModelError
from workers.inference.engine.protocol import EngineRequest, Phase, SamplingParams
from workers.inference.engine.request import Request
from workers.inference.engine.scheduler import Batch, Chunk
from workers.inference.engine.torch_forward import TorchForward

_WARM_UP_TOKENS = 16
_NATIVE_DTYPES = ("fp32", "bf16")

log = structlog.get_logger(__name__)


class MillraceEngine(BatchEngine):
    """Continuous batching on the CPU or one CUDA device."""

    def __init__(self, config: EngineConfig, on_progress: OnProgress | None = None) -> None:
        self._config = config
        self._device = choose_device(config.device)
        super().__init__(
            self._load_runners,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens or _default_budget(self._device),
            on_progress=on_progress,
            enable_prefix_cache=config.enable_prefix_cache,
        )

    def _load_runners(self, report: OnProgress) -> list[ModelRunner]:
        config = self._config
        if not config.models:
            raise EngineError("model_load_failed", "the engine has no models to load")
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        if self._device.type == "cuda":  # kernels start on the thread's current device
            torch.cuda.set_device(self._device.index or 0)
        loaded = [self._load_model(spec, self._reporter(i)) for i, spec in enumerate(config.models)]
        share = int(free_bytes(self._device) * config.kv_memory_share) // len(loaded)
        num_bytes = config.kv_cache_bytes or share
        runners = [self._runner(model, weights, num_bytes) for model, weights in loaded]
        for runner in runners:
            _warm_up(runner)
        report("ready", 1.0)
        return runners

    def _reporter(self, index: int) -> OnShare:
        """Reports how far the loading of one model is, as its part of loading them all."""
        models = self._config.models
        return lambda share: self._report(models[index].name, (index + share) / len(models))

    def _load_model(
        self, spec: ModelSpec, on_share: OnShare
    ) -> tuple[LoadedModel, NativeWeights | None]:
        """The model for the compiled step where that can compute it, else as it is."""
        on_share(0.0)
        loaded = self._load_weights(spec, on_share)
        if self._device.type != "cpu" or loaded.info.dtype not in _NATIVE_DTYPES:
            return loaded, None
        if not self._config.use_native_step:
            return loaded, None
        try:
            with self._declared(Phase.COMPILING):
                built_library()
            weights = read_weights(
                loaded.model,
                loaded.info.context_length,
                loaded.kv_shape,
                on_layer=lambda: on_share(1.0),
            )
        except (BuildError, UnsupportedModelError) as error:
            log.warning("native_step_unavailable", model=spec.name, reason=str(error))
            del loaded  # spoilt, and its memory is needed for the second time
            return self._load_weights(spec, on_share), None
        return loaded, weights

    def _load_weights(self, spec: ModelSpec, on_share: OnShare) -> LoadedModel:
        config = self._config
        return load_model(
            spec, self._device, is_hub_allowed=config.is_hub_allowed, on_share=on_share
        )

    def _runner(
        self, loaded: LoadedModel, weights: NativeWeights | None, num_bytes: int
    ) -> ModelRunner:
        max_num_seqs = self._config.max_num_seqs or DEFAULT_MAX_NUM_SEQS
        num_pages = fit_num_pages(
            loaded.kv_shape,
            max_num_seqs=max_num_seqs,
            context_length=loaded.info.context_length,
            num_bytes=num_bytes,
        )
        forward = self._forward(loaded, weights, num_pages)
        return ModelRunner(loaded.info, loaded.text, forward, max_num_seqs=max_num_seqs)

    def _forward(
        self, loaded: LoadedModel, weights: NativeWeights | None, num_pages: int
    ) -> Forward:
        if self._device.type == "cuda" and self._config.use_cuda_kernels:
            with self._declared(Phase.COMPILING):
                return self._cuda_forward(loaded, num_pages)
        cache = KVCache(loaded.kv_shape, num_pages=num_pages, device=self._device)
        if weights is not None:
            return NativeForward(weights, cache)
        return TorchForward(loaded.model, cache)

    def _cuda_forward(self, loaded: LoadedModel, num_pages: int) -> Forward:
        config, name = self._config, loaded.info.name
        return choose_forward(
            loaded,
            KVCache(loaded.kv_shape, num_pages=num_pages + NUM_SPARE_PAGES, device=self._device),
            recorder=CudaRecorder(self._device) if config.use_cuda_graphs else None,
            max_num_seqs=config.max_num_seqs or DEFAULT_MAX_NUM_SEQS,
            on_recorded=lambda: self._report(f"recording {name}", 1.0),
        )


def _default_budget(device: torch.device) -> int:
    is_cuda = device.type == "cuda"
    return DEFAULT_MAX_NUM_BATCHED_TOKENS_CUDA if is_cuda else DEFAULT_MAX_NUM_BATCHED_TOKENS


def _warm_up(runner: ModelRunner) -> None:
    """One forward pass: an unsupported attention fails here, not with the first request."""
    num_tokens = min(_WARM_UP_TOKENS, runner.info.context_length - 1)
    sampling = SamplingParams(max_tokens=1)
    request = Request(
        EngineRequest(
            request_id="warm-up",
            model=runner.info.name,
            prompt_token_ids=[0] * num_tokens,
            sampling=sampling,
        ),
        decoder=runner.decoder(sampling),
        eos_token_ids=runner.eos_token_ids,
        context_length=runner.info.context_length,
    )
    request.pages = [0]
    runner.run(Batch((Chunk(request, 0, num_tokens),)))
