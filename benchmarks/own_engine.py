"""Our engine in this process, as an arm of the benchmark and for its probes."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Self

import torch

from benchmarks.peers.arm import check_tokens, rate
from benchmarks.workload import CONCURRENCY, Job
from workers.inference.engine.config import EngineConfig, ModelSpec
from workers.inference.engine.factory import build_engine
from workers.inference.engine.protocol import (
    Engine,
    EngineRequest,
    SamplingParams,
    TokenOutput,
)

NAME = "bench"


class OwnEngine:
    """Arm. Each run has a cache salt of its own: no prompt finds an earlier round's pages."""

    def __init__(self, engine: Engine) -> None:
        """Starts `engine`, which serves one model called NAME."""
        self.engine = engine
        self._steps: queue.SimpleQueue[Sequence[TokenOutput]] = queue.SimpleQueue()
        self._ids = count()
        self._salts = map(str, count())
        engine.start(self.take)

    def take(self, outputs: Sequence[TokenOutput]) -> None:
        """The sink: called by the engine's thread after each step."""
        self._steps.put(outputs)

    @classmethod
    def load(cls, model: Path, *, dtype: str = "bf16", **config: Any) -> Self:
        """Default settings, but for `config` (fields of EngineConfig) and W-mix's concurrency."""
        spec = ModelSpec(name=NAME, path=str(model), dtype=dtype)  # type: ignore[arg-type]
        settings = {"max_num_seqs": CONCURRENCY} | config
        return cls(build_engine(EngineConfig(models=(spec,), **settings)))

    def describe(self) -> str:
        return f"ours, torch {torch.__version__}"

    def tokens_per_second(self, jobs: Sequence[Job]) -> float:
        started = time.perf_counter()
        rows = self.generate(jobs)
        return rate(sum(map(len, rows)), jobs, time.perf_counter() - started)

    def generate(self, jobs: Sequence[Job]) -> list[list[int]]:
        """The greedy tokens of each job, all submitted at once."""
        rows: dict[str, list[int]] = {request_id: [] for request_id in self.submit(jobs)}
        for step in self.steps(len(jobs)):
            for output in step:
                rows[output.request_id] += output.token_ids
        return list(rows.values())

    def decode_rate(self, jobs: Sequence[Job], grammar: str | None = None) -> float:
        """Tokens a second once every job decodes.

        Jobs of equal length, so that nobody ends long before the others. Raises RuntimeError where
        one ended early all the same.
        """
        self.submit(jobs, grammar=grammar)
        num_before, num_after, started = 0, 0, 0.0
        seen: set[str] = set()
        for step in self.steps(len(jobs)):
            num_tokens = sum(len(output.token_ids) for output in step)
            if len(seen) == len(jobs):
                num_after += num_tokens
                continue
            seen.update(output.request_id for output in step if output.token_ids)
            num_before += num_tokens
            started = time.perf_counter()
        seconds = time.perf_counter() - started
        check_tokens(num_before + num_after, jobs)
        return num_after / seconds

    def first_token_s(self, prompt: Sequence[int], salt: str) -> tuple[float, int]:
        """Seconds from submit to the one token of a request, and its cached prompt tokens."""
        started = time.perf_counter()
        self.submit([Job(tuple(prompt), 1)], salt=salt)
        (step,) = self.steps(1)
        return time.perf_counter() - started, step[-1].cached_tokens

    def submit(
        self, jobs: Sequence[Job], *, grammar: str | None = None, salt: str | None = None
    ) -> list[str]:
        """Request ids, in order. `salt` None: one that nobody had before."""
        salt = next(self._salts) if salt is None else salt
        ids = [str(next(self._ids)) for _ in jobs]
        for request_id, job in zip(ids, jobs, strict=True):
            self.engine.submit(
                EngineRequest(
                    request_id=request_id,
                    model=NAME,
                    prompt_token_ids=job.prompt,
                    sampling=SamplingParams(
                        max_tokens=job.max_tokens, temperature=0.0, ignore_eos=True
                    ),
                    cache_salt=f"salt {salt}",
                    grammar=grammar,
                )
            )
        return ids

    def steps(self, num_ends: int) -> Iterator[Sequence[TokenOutput]]:
        """What each step produced, until so many requests have ended. Raises what failed one."""
        while num_ends:
            step = self._steps.get()
            for output in step:
                if output.error is not None:
                    raise output.error
                num_ends -= output.finish_reason is not None
            yield step

    def close(self) -> None:
        self.engine.shutdown()
