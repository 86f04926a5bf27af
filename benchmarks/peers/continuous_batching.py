"""transformers' own continuous batching, at the settings that are fastest on this machine."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.peers.arm import rate
from benchmarks.workload import Job, w_mix_batch

# What runs on a CPU. The flash kernels that the library prefers exist for GPUs only.
CPU_ATTENTIONS = ("sdpa", "paged|eager")
# Prompts are prefilled with one dense mask over a step's tokens: a smaller step can be the faster.
TOKEN_BUDGETS = (8_192, 256)  # the first is the library's default
PAGE_SIZE = 256  # tokens; the library's default
# On a CPU the library finds no memory for its cache unless told: these hold W-mix with room.
_NUM_BLOCKS = 48
_TIMEOUT_S = 600.0


class ContinuousBatching:
    """Arm. Drives the library's manager directly: nothing of ours slows it."""

    def __init__(
        self,
        model: Path,
        attention: str,
        max_batch_tokens: int,
    ) -> None:
        self._settings = f"{attention}, {max_batch_tokens} tokens a step"
        self._model = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.bfloat16, attn_implementation=attention
        )
        self._manager = start_manager(
            self._model, num_blocks=_NUM_BLOCKS, max_batch_tokens=max_batch_tokens
        )

    def describe(self) -> str:
        return f"transformers {transformers.__version__} continuous batching, {self._settings}"

    def tokens_per_second(self, jobs: Sequence[Job]) -> float:
        started = time.perf_counter()
        num_tokens = run(self._manager, jobs)
        return rate(num_tokens, jobs, time.perf_counter() - started)

    def close(self) -> None:
        self._manager.stop(block=True, timeout=30)
        del self._manager, self._model
        gc.collect()


def start_manager(model: Any, *, num_blocks: int, max_batch_tokens: int) -> Any:
    """A running ContinuousBatchingManager: greedy, no eos, no prefix sharing."""
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=PAGE_SIZE,
            num_blocks=num_blocks,
            max_batch_tokens=max_batch_tokens,
            allow_block_sharing=False,
        ),
    )
    manager.warmup()
    manager.start()
    return manager


def run(manager: Any, jobs: Sequence[Job]) -> int:
    """Submit all, wait for all; the number of tokens that came."""
    for job in jobs:
        manager.add_request(list(job.prompt), max_new_tokens=job.max_tokens, eos_token_id=-1)
    num_tokens = 0
    for _ in jobs:
        result = manager.get_result(timeout=_TIMEOUT_S)
        if result is None or result.error:
            raise RuntimeError(f"continuous batching failed: {result and result.error}")
        num_tokens += len(result.generated_tokens)
    return num_tokens


def best_continuous_batching(model: Path) -> ContinuousBatching:
    """The arm with the settings that ran W-mix fastest, each tried once after a short warm-up."""
    jobs = w_mix_batch()
    rates = {}
    for setting in product(CPU_ATTENTIONS, TOKEN_BUDGETS):
        arm = ContinuousBatching(model, *setting)
        arm.tokens_per_second(jobs[:4])
        rates[setting] = arm.tokens_per_second(jobs)
        print(f"{arm.describe()}: {rates[setting]:.0f} tok/s", file=sys.stderr, flush=True)
        arm.close()
    return ContinuousBatching(model, *max(rates, key=rates.__getitem__))
