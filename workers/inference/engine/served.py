"""One resident model in the step loop: schedule, run, sample, commit, and survive what fails.

Device thread only, except for what says otherwise and the numbers that stats() reads.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import structlog

from workers.inference.engine.bisection import Computed, Outcome, bisect, is_out_of_memory
from workers.inference.engine.counters import Counters
from workers.inference.engine.errors import EngineError
from workers.inference.engine.executor import Executor, SampledToken
from workers.inference.engine.page_digests import extend_page_digests
from workers.inference.engine.page_pool import PagePool
from workers.inference.engine.protocol import FinishReason, TokenOutput
from workers.inference.engine.request import Request
from workers.inference.engine.scheduler import Batch, Scheduler
from workers.inference.engine.token_budget import TokenBudget

_FIRST_TOKENS = 64  # of a step, as long as nobody knows how fast the device is
# Scores of prompts in one step: those of all tokens of a long prompt are GBs.
_SCORES_BYTES = 64 << 20
# A step counts as hung after so many times the longest of late; before any step, after so long.
_TIMES_LONGER = 4.0
_FIRST_PATIENCE_S = 15.0
_MOST_PATIENCE_S = 60.0
_FADING = 0.99  # of the longest step with each one that follows

log = structlog.get_logger(__name__)


class ServedModel:
    """A model's executor with its scheduler."""

    def __init__(
        self,
        executor: Executor,
        *,
        max_num_batched_tokens: int,
        enable_prefix_cache: bool,
        counters: Counters,
    ) -> None:
        self.executor = executor
        self._enable_prefix_cache = enable_prefix_cache
        self._counters = counters
        self._budget = TokenBudget(
            max_num_batched_tokens, least=executor.max_num_seqs + 1, first=_FIRST_TOKENS
        )
        self._longest_step_s: float | None = None  # of late
        self.restart(())

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    @property
    def num_running(self) -> int:
        return len(self._scheduler.running)

    @property
    def patience_s(self) -> float:
        """How long a step may take before it counts as hung."""
        longest = self._longest_step_s
        if longest is None:
            return _FIRST_PATIENCE_S
        return min(_TIMES_LONGER * longest, _MOST_PATIENCE_S)

    @property
    def kv_cache_usage(self) -> float:
        """Share of the KV cache's pages in use, 0 to 1."""
        return self._pool.usage

    def prepare(self, choices: Sequence[Request]) -> None:
        """Hash the pages of a new request's choices. Called by submitting threads."""
        page_size, is_private = self.executor.page_size, not self._enable_prefix_cache
        first = choices[0]
        num_shared = first.num_prompt // page_size
        for choice in choices:
            choice.page_digests = first.page_digests[:num_shared]
            extend_page_digests(choice, page_size, is_private=is_private)

    def add(self, request: Request) -> None:
        self._scheduler.add(request)

    def remove(self, request: Request) -> None:
        self._scheduler.remove(request)

    def restart(self, requests: Iterable[Request]) -> None:
        """Begin anew with these: they are computed again, from their tokens so far."""
        executor = self.executor
        self._pool = PagePool(executor.num_pages, executor.page_size)
        self._scheduler = Scheduler(
            self._pool,
            self._budget,
            max_num_seqs=executor.max_num_seqs,
            counters=self._counters,
            enable_prefix_cache=self._enable_prefix_cache,
            max_scored_rows=max(1, _SCORES_BYTES // (4 * executor.info.vocab_size)),
        )
        for request in requests:
            request.pages, request.num_computed = [], 0
            self._scheduler.add(request)

    def step(self, outputs: list[TokenOutput]) -> None:
        """One step; adds to `outputs` as it goes. Whatever fails ends the requests at fault.

        Raises only for faults of ours. A step that runs out of memory may produce nothing: the
        next one is smaller.
        """
        started = time.perf_counter()
        batch = self._scheduler.schedule()
        assert batch.chunks, "there is work, but nothing to compute"
        self._counters.schedule_s += time.perf_counter() - started
        self._counters.num_steps += 1
        started = time.perf_counter()
        try:
            outcome = Outcome(computed=[self._compute(batch)])
            self._note_step(batch.num_tokens, time.perf_counter() - started)
        except Exception as error:  # the device's boundary: anything can come from there
            outcome = self._recover(batch, error)
        started = time.perf_counter()
        for computed in outcome.computed:
            self._accept(computed, outputs)
        for request, reason in outcome.failed:
            self._fail(request, reason, outputs)
        self._counters.emit_s += time.perf_counter() - started

    def _note_step(self, num_tokens: int, seconds: float) -> None:
        self._budget.note_clean_step(num_tokens, seconds)
        self._longest_step_s = max(seconds, (self._longest_step_s or 0.0) * _FADING)

    def _compute(self, batch: Batch) -> Computed:
        """Run and sample; changes no request."""
        started = time.perf_counter()
        sampled, scored = batch.sampled, batch.scored
        try:
            scores = self.executor.run(batch)
        finally:
            ran = time.perf_counter()
            self._counters.run_s += ran - started
        try:
            told = self.executor.score(scores, batch) if scored else ()
            tokens = self.executor.sample(scores, sampled) if sampled else ()
        finally:
            self._counters.sample_s += time.perf_counter() - ran
        return Computed(batch, sampled, tokens, [chunk.request for chunk in scored], told)

    def _recover(self, batch: Batch, error: Exception) -> Outcome:
        """Compute what can be computed of a batch that failed; without memory, less at a time."""
        if is_out_of_memory(error):
            return self._recover_memory(batch, error)
        outcome = bisect(self._compute, batch, error)
        log.error(
            "engine_step_failed",
            num_requests=len(batch.chunks),
            num_failed=len(outcome.failed),
            exc_info=error,
        )
        return outcome

    def _recover_memory(self, batch: Batch, error: Exception) -> Outcome:
        self._counters.num_out_of_memory += 1
        is_smaller = self._budget.shrink_below(batch.num_tokens)
        outcome = Outcome() if is_smaller else bisect(self._compute, batch, error)
        log.warning(
            "engine_out_of_memory",
            num_tokens=batch.num_tokens,
            num_failed=len(outcome.failed),
            token_budget=self._budget.value,
            reason=str(error),
        )
        return outcome

    def _accept(self, computed: Computed, outputs: list[TokenOutput]) -> None:
        batch = computed.batch
        self._scheduler.commit(batch)
        self._counters.prompt_tokens += batch.num_tokens - batch.num_decodes
        for request, scores in zip(computed.scored, computed.scores, strict=True):
            if (output := request.tell_prompt(scores)) is not None:
                outputs.append(output)
        for request, token in zip(computed.sampled, computed.tokens, strict=True):
            self._append(request, token, outputs)

    def _append(
        self, request: Request, token: SampledToken | EngineError, outputs: list[TokenOutput]
    ) -> None:
        if isinstance(token, EngineError):
            self._fail(request, token, outputs)
            return
        try:
            output = request.append(token)
        except Exception as error:  # the tokenizer's or the grammar's
            log.exception("engine_request_failed", request_id=request.request_id)
            self._fail(request, error, outputs)
            return
        outputs.append(output)  # at once: a fault of ours after this must not lose the token
        self._counters.generated_tokens += len(output.token_ids)
        if request.is_finished:
            self.remove(request)

    def _fail(self, request: Request, error: Exception, outputs: list[TokenOutput]) -> None:
        outputs.append(request.finish(FinishReason.ERROR, _engine_error(error)))
        self.remove(request)


def _engine_error(error: Exception) -> EngineError:
    if isinstance(error, EngineError):
        return error
    return EngineError("engine_error", f"{type(error).__name__}: {error}", retryable=True)
