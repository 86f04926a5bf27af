"""The peer of the platform: the same engine on the same model, with nothing around it.

Runs as a process of its own and speaks JSON lines over stdin and stdout, so that it doesn't share
an interpreter with the client of the platform.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.workload import CONCURRENCY, Job, short, w_mix


class RawEngine:
    """The process, as the benchmark sees it. A context manager."""

    def __init__(self, model: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.raw_engine", str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask_ready()

    def __enter__(self) -> RawEngine:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def throughput(self, *, seed: int, ramp_s: float, seconds: float) -> float:
        """Output tokens a second of a closed loop of 32 requests."""
        answer = self._ask(kind="throughput", seed=seed, ramp_s=ramp_s, seconds=seconds)
        return float(answer["tok_s"])

    def first_token_ms(self, *, seed: int, num: int) -> list[float]:
        """Submit to first token on an idle engine, one request at a time."""
        return list(self._ask(kind="first_token", seed=seed, num=num)["ms"])

    def _ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._ask_ready()

    def _ask_ready(self) -> dict[str, Any]:
        assert self._process.stdout
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


class _Runner:
    def __init__(self, model: Path) -> None:
        from workers.inference.engine.config import EngineConfig, ModelSpec  # noqa: PLC0415
        from workers.inference.engine.factory import build_engine  # noqa: PLC0415

        spec = ModelSpec(name="m135", path=str(model), dtype="bf16")
        config = EngineConfig(device="cpu", models=(spec,), max_num_seqs=CONCURRENCY)
        self._engine = build_engine(config)
        self._steps: queue.SimpleQueue[Sequence[Any]] = queue.SimpleQueue()
        self._ids = count()
        self._engine.start(self._steps.put)

    def throughput(self, *, seed: int, ramp_s: float, seconds: float) -> float:
        jobs = w_mix(seed)
        for _ in range(CONCURRENCY):
            self._submit(next(jobs))
        start = time.monotonic() + ramp_s
        num_tokens, num_open = 0, CONCURRENCY
        while num_open:
            outputs = self._steps.get()
            now = time.monotonic()
            if start <= now < start + seconds:
                num_tokens += sum(len(output.token_ids) for output in outputs)
            for output in outputs:
                if output.finish_reason is None:
                    continue
                if now < start + seconds:
                    self._submit(next(jobs))
                else:
                    num_open -= 1
        return num_tokens / seconds

    def first_token_ms(self, *, seed: int, num: int) -> list[float]:
        return [self._first_token(job) for job, _ in zip(short(seed), range(num), strict=False)]

    def _first_token(self, job: Job) -> float:
        start = time.monotonic()
        self._submit(job)
        first: float | None = None
        while True:
            outputs = self._steps.get()
            first = first or time.monotonic() - start
            if any(output.finish_reason for output in outputs):
                return first * 1000

    def _submit(self, job: Job) -> None:
        from workers.inference.engine.protocol import (  # noqa: PLC0415
            EngineRequest,
            SamplingParams,
        )

        sampling = SamplingParams(max_tokens=job.max_tokens, temperature=0.0, ignore_eos=True)
        self._engine.submit(
            EngineRequest(
                request_id=str(next(self._ids)),
                model="m135",
                prompt_token_ids=job.prompt,
                sampling=sampling,
            )
        )

    def close(self) -> None:
        self._engine.shutdown()


def _serve(model: Path) -> None:
    runner = _Runner(model)
    _answer({"ready": True})
    for question in _questions():
        kind = question.pop("kind")
        if kind == "throughput":
            _answer({"tok_s": runner.throughput(**question)})
        else:
            _answer({"ms": runner.first_token_ms(**question)})
    runner.close()


def _questions() -> Iterator[dict[str, Any]]:
    yield from map(json.loads, sys.stdin)


def _answer(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
