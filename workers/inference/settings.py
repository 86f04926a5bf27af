"""The inference worker's own settings, from MILLRACE_* variables."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parents[2]


class WorkerSettings(BaseSettings):
    """What to run, on what, and how the stub engine behaves."""

    model_config = SettingsConfigDict(env_prefix="MILLRACE_", extra="ignore")

    pool: str = "default"
    device: str = "auto"
    engine: Literal["millrace", "transformers-cb", "stub"] = "millrace"
    models_dir: Path = ROOT  # relative model sources are looked up here
    max_num_seqs: int | None = Field(default=None, ge=1, le=1024)
    max_num_batched_tokens: int | None = Field(default=None, ge=16)
    num_threads: int | None = Field(default=None, ge=1)
    # Of the memory that is free once the models are loaded; workers on one machine share it.
    kv_memory_share: float = Field(default=0.5, gt=0, le=0.95)
    enable_prefix_cache: bool = True
    use_native_step: bool = True  # compiled code on a CPU, where the model allows it
    use_cuda_kernels: bool = True  # our attention kernels on a GPU, where they prove themselves
    use_cuda_graphs: bool = True  # with them, decode steps recorded at load
    allow_hub: bool = False
    drain_s: float = Field(default=25.0, ge=0)  # at a stop, what ends within this is finished here

    stub_slots: int = Field(default=32, ge=1)
    stub_step_ms: float = Field(default=0.0, ge=0)
    stub_token_ms: float = Field(default=0.0, ge=0)
    stub_prompt_token_ms: float = Field(default=0.0, ge=0)
    stub_refused: list[str] = []  # names of models, as if they couldn't be loaded
    stub_num_tokens: int | None = None  # tokens before the stub stops by itself
    stub_oracle: Path | None = None  # where the stub notes what it ran

    @property
    def stop_grace_s(self) -> float:
        """Who stops a worker waits this long before it kills: the drain, and giving back."""
        return self.drain_s + 10.0
