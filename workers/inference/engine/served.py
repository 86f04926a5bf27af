"""One resident model in the step loop: schedule, run, sample, and survive what fails.

Device thread only, except for the counters that stats() reads.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from workers.inference.engine.errors import EngineError
from workers.inference.engine.executor import Executor
from workers.inference.engine.protocol import FinishReason, TokenOutput
from workers.inference.engine.request import Request
from workers.inference.engine.scheduler import Batch, Scheduler

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class StepTimes:
    """Sums over all steps of all models since the start; they only grow."""

    num_steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    schedule_s: float = 0.0
    run_s: float = 0.0
    sample_s: float = 0.0
    emit_s: float = 0.0


class ServedModel:
    """A model's executor with its scheduler."""

    def __init__(self, executor: Executor, max_num_batched_tokens: int, times: StepTimes) -> None:
        self.executor = executor
        self._times = times
        self._scheduler = Scheduler(
            max_num_seqs=executor.max_num_seqs, max_num_batched_tokens=max_num_batched_tokens
        )

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    @property
    def num_running(self) -> int:
        return len(self._scheduler.running)

    @property
    def kv_cache_usage(self) -> float:
        capacity = self.executor.max_num_seqs * self.executor.info.context_length
        return sum(request.num_computed for request in tuple(self._scheduler.running)) / capacity

    def add(self, request: Request) -> None:
        self._scheduler.add(request)

    def remove(self, request: Request) -> None:
        self._scheduler.remove(request)

    def step(self) -> list[TokenOutput]:
        """Schedule, run, sample. Whatever fails becomes a terminal output of the requests in it."""
        started = time.perf_counter()
        batch = self._scheduler.schedule()
        scheduled = time.perf_counter()
        self._times.schedule_s += scheduled - started
        self._times.num_steps += 1
        try:
            scores = self.executor.run(batch)
        except Exception as error:
            return self._fail_batch(batch, error)
        finally:
            ran = time.perf_counter()
            self._times.run_s += ran - scheduled
        outputs = self._sample(batch, scores)
        self._times.sample_s += time.perf_counter() - ran
        self._count(batch, outputs)
        return outputs

    def _sample(self, batch: Batch, scores: object) -> list[TokenOutput]:
        requests = batch.sampled
        if not requests:
            return []
        try:
            tokens = self.executor.sample(scores, requests)
        except Exception as error:
            return self._fail_batch(batch, error)
        return [self._append(r, token) for r, token in zip(requests, tokens, strict=True)]

    def _append(self, request: Request, token: int | EngineError) -> TokenOutput:
        if isinstance(token, EngineError):
            return self._fail(request, token)
        try:
            output = request.append(token)
        except Exception as error:
            log.exception("engine_request_failed", request_id=request.request_id)
            return self._fail(request, _engine_error(error))
        if request.is_finished:
            self.remove(request)
        return output

    def _fail_batch(self, batch: Batch, error: Exception) -> list[TokenOutput]:
        log.error("engine_step_failed", num_requests=len(batch.chunks), exc_info=error)
        return [self._fail(request, _engine_error(error)) for request in batch.requests]

    def _fail(self, request: Request, error: EngineError) -> TokenOutput:
        self.remove(request)
        return request.finish(FinishReason.ERROR, error)

    def _count(self, batch: Batch, outputs: Sequence[TokenOutput]) -> None:
        num_generated = sum(len(output.token_ids) for output in outputs)
        self._times.generated_tokens += num_generated
        self._times.prompt_tokens += batch.num_tokens - batch.num_decodes


def _engine_error(error: Exception) -> EngineError:
    if isinstance(error, EngineError):
        return error
    return EngineError("engine_error", f"{type(error).__name__}: {error}", retryable=True)
