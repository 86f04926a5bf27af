"""transformers' `generate()`: one static batch, padded on the left, up to its longest output."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

from benchmarks.peers.arm import rate
from benchmarks.workload import Job

_PAD = 0  # any id: padding is masked


class StaticGenerate:
    """Arm. Only the tokens that a request asked for count; the rest of its row is waste."""

    def __init__(self, model: Path, *, dtype: torch.dtype = torch.bfloat16) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)

    def describe(self) -> str:
        attention = self._model.config._attn_implementation
        return f"transformers {transformers.__version__} generate, {attention}"

    def tokens_per_second(self, jobs: Sequence[Job]) -> float:
        started = time.perf_counter()
        rows = self.generate(jobs)
        return rate(sum(map(len, rows)), jobs, time.perf_counter() - started)

    def generate(self, jobs: Sequence[Job]) -> list[list[int]]:
        """The greedy tokens of each job."""
        width = max(len(job.prompt) for job in jobs)
        prompts = [[_PAD] * (width - len(job.prompt)) + list(job.prompt) for job in jobs]
        mask = [[0] * (width - len(job.prompt)) + [1] * len(job.prompt) for job in jobs]
        output = self._model.generate(
            torch.tensor(prompts),
            attention_mask=torch.tensor(mask),
            max_new_tokens=max(job.max_tokens for job in jobs),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=_PAD,
        )
        rows = output[:, width:].tolist()
        return [row[: job.max_tokens] for row, job in zip(rows, jobs, strict=True)]

    def close(self) -> None:
        del self._model
