"""What an engine is built from. Frozen records: the caller reads settings, not this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DEFAULT_MAX_NUM_SEQS = 32
# Tokens per step. Running requests wait for a prefill: 512 tokens take about 0.2 s on two cores.
DEFAULT_MAX_NUM_BATCHED_TOKENS = 512
DEFAULT_MAX_NUM_BATCHED_TOKENS_CUDA = 8192

EngineKind = Literal["millrace", "transformers-cb", "stub"]
Dtype = Literal["auto", "fp32", "bf16", "fp16", "int8", "nf4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model to load. `path` is a folder, or a hub id where the hub is allowed."""

    name: str
    path: str
    dtype: Dtype = "auto"
    revision: str | None = None  # of a hub id; None takes the newest
    max_context: int | None = None  # tokens; None takes what the model's own config says


@dataclass(frozen=True, slots=True, kw_only=True)
class StubConfig:
    """How the stub behaves. Times are milliseconds of simulated device work."""

    model_names: tuple[str, ...] = ("stub",)
    refused: frozenset[str] = frozenset()  # of those models, as if they couldn't be loaded
    max_num_seqs: int = 32
    context_length: int = 4096
    vocab_size: int = 32_000
    step_ms: float = 0.0  # per step, whatever is in the batch
    token_ms: float = 0.0  # per generated token, on top of step_ms
    prompt_token_ms: float = 0.0  # per prefilled token, on top of step_ms
    num_tokens: int | None = None  # tokens before eos; None generates up to max_tokens
    num_pages: int | None = None  # of 16 tokens; None: as many as max_num_seqs can fill
    poison_token_id: int | None = None  # a step that computes this token of a prompt raises
    oom_above_tokens: int | None = None  # a step of more tokens runs out of memory
    oracle_path: Path | None = None  # gets one line per request accepted and per request finished


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One engine: one device, one device thread, all `models` resident together."""

    kind: EngineKind = "millrace"
    device: str = "cpu"
    models: tuple[ModelSpec, ...] = ()
    max_num_seqs: int | None = None  # running requests per model; None derives it from memory
    max_num_batched_tokens: int | None = None  # token budget of one step; None: by device
    enable_prefix_cache: bool = True  # keep computed pages for later requests of equal salt
    num_threads: int | None = None  # CPU threads of torch; None leaves torch's own choice
    kv_memory_share: float = 0.5  # of the memory that is free after loading, for all KV caches
    kv_cache_bytes: int | None = None  # of each model's KV cache; None: its part of that share
    # On a CPU: compute whole steps in compiled code where the model allows it (native/).
    use_native_step: bool = True
    # On a GPU: our attention kernels and recorded decodes, where they prove themselves (cuda/).
    use_cuda_kernels: bool = True
    use_cuda_graphs: bool = True
    is_hub_allowed: bool = False  # may weights be downloaded
    stub: StubConfig | None = None
