"""The real engine: loads its models on the device thread and hands them to the step loop."""

from __future__ import annotations

from dataclasses import dataclass

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
from workers.inference.engine.proof import Proof
from workers.inference.engine.protocol import Phase
from workers.inference.engine.torch_forward import TorchForward

_NATIVE_DTYPES = ("fp32", "bf16")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ProvenModel:
    """A model with what proves the way it is computed; `weights` for the compiled step."""

    loaded: LoadedModel
    proof: Proof
    weights: NativeWeights | None = None


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
        loaded = []
        for i, spec in enumerate(config.models):
            with self._refusing(spec.name):
                loaded.append(self._load_model(spec, self._reporter(i)))
        share = int(free_bytes(self._device) * config.kv_memory_share) // max(1, len(loaded))
        runners = []
        for model in loaded:
            with self._refusing(model.loaded.info.name):
                runners.append(self._runner(model, config.kv_cache_bytes or share))
        report("ready", 1.0)
        return runners

    def _reporter(self, index: int) -> OnShare:
        """Reports how far the loading of one model is, as its part of loading them all."""
        models = self._config.models
        return lambda share: self._report(models[index].name, (index + share) / len(models))

    def _load_model(self, spec: ModelSpec, on_share: OnShare) -> ProvenModel:
        """The model for the compiled step where that can compute it, else as it is."""
        on_share(0.0)
        loaded = self._load_weights(spec, on_share)
        on_share(1.0)
        proof = Proof(loaded, on_step=lambda: on_share(1.0))
        if self._device.type != "cpu":
            return ProvenModel(loaded, proof)
        if self._config.use_native_step and loaded.info.dtype in _NATIVE_DTYPES:
            try:
                return ProvenModel(loaded, proof, self._compiled(loaded, proof, on_share))
            except (BuildError, UnsupportedModelError) as error:
                log.warning("native_step_unavailable", model=spec.name, reason=str(error))
            del loaded  # spoilt, and its memory is needed for the second time
            loaded = self._load_weights(spec, on_share)
            proof.use(loaded)
        cache = KVCache(loaded.kv_shape, num_pages=proof.num_pages, device=self._device)
        proof.check(TorchForward(loaded.model, cache))
        return ProvenModel(loaded, proof)

    def _compiled(self, loaded: LoadedModel, proof: Proof, on_share: OnShare) -> NativeWeights:
        with self._declared(Phase.COMPILING):
            built_library()
        return read_weights(loaded, proof, on_layer=lambda: on_share(1.0))

    def _load_weights(self, spec: ModelSpec, on_share: OnShare) -> LoadedModel:
        config = self._config
        return load_model(
            spec, self._device, is_hub_allowed=config.is_hub_allowed, on_share=on_share
        )

    def _runner(self, model: ProvenModel, num_bytes: int) -> ModelRunner:
        loaded = model.loaded
        max_num_seqs = self._config.max_num_seqs or DEFAULT_MAX_NUM_SEQS
        num_pages = fit_num_pages(
            loaded.kv_shape,
            max_num_seqs=max_num_seqs,
            context_length=loaded.info.context_length,
            num_bytes=num_bytes,
        )
        forward = self._forward(model, num_pages)
        return ModelRunner(loaded.info, loaded.text, forward, max_num_seqs=max_num_seqs)

    def _forward(self, model: ProvenModel, num_pages: int) -> Forward:
        loaded = model.loaded
        if self._device.type == "cuda" and self._config.use_cuda_kernels:
            with self._declared(Phase.COMPILING):
                return self._cuda_forward(loaded, model.proof, num_pages)
        cache = KVCache(loaded.kv_shape, num_pages=num_pages, device=self._device)
        if model.weights is not None:
            return NativeForward(model.weights, cache)
        forward = TorchForward(loaded.model, cache)
        if self._device.type != "cpu":  # there it has been checked as soon as it was loaded
            model.proof.check(forward)
        return forward

    def _cuda_forward(self, loaded: LoadedModel, proof: Proof, num_pages: int) -> Forward:
        config, name = self._config, loaded.info.name
        return choose_forward(
            loaded,
            KVCache(loaded.kv_shape, num_pages=num_pages + NUM_SPARE_PAGES, device=self._device),
            proof=proof,
            recorder=CudaRecorder(self._device) if config.use_cuda_graphs else None,
            max_num_seqs=config.max_num_seqs or DEFAULT_MAX_NUM_SEQS,
            on_recorded=lambda: self._report(f"recording {name}", 1.0),
        )


def _default_budget(device: torch.device) -> int:
    is_cuda = device.type == "cuda"
    return DEFAULT_MAX_NUM_BATCHED_TOKENS_CUDA if is_cuda else DEFAULT_MAX_NUM_BATCHED_TOKENS
