"""The continuous-batching engine: one thread owns the device and takes step after step.

Requests join and leave between any two steps. What a step computes is an Executor's affair, so the
stub and the real models share everything here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import structlog

from workers.inference.engine.config import DEFAULT_MAX_NUM_SEQS
from workers.inference.engine.errors import EngineError
from workers.inference.engine.executor import Executor
from workers.inference.engine.protocol import (
    EngineRequest,
    EngineStats,
    FinishReason,
    ModelInfo,
    Phase,
    Progress,
    StepSink,
    TokenOutput,
)
from workers.inference.engine.request import Request
from workers.inference.engine.served import ServedModel, StepTimes
from workers.inference.engine.validation import check_request

# Says what is being loaded, and how much of all loading is done (0 to 1).
OnProgress = Callable[[str, float], None]
# Loads every model; runs in the device thread and reports each step of the load.
LoadExecutors = Callable[[OnProgress], Sequence[Executor]]

_JOIN_TIMEOUT_S = 30.0  # a step that takes longer than this at shutdown is left behind

log = structlog.get_logger(__name__)


class BatchEngine:
    """Engine over any executors. See protocol.Engine for the contract of the public methods."""

    def __init__(
        self,
        load: LoadExecutors,
        *,
        max_num_seqs: int | None,
        max_num_batched_tokens: int,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._load = load
        self._configured_max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._on_progress = on_progress
        self._served: dict[str, ServedModel] = {}
        self._phase = Phase.LOADING
        self._counter = 0
        self._times = StepTimes()
        self._thread: threading.Thread | None = None
        self._loaded = threading.Event()
        self._load_error: BaseException | None = None
        # Guards what follows; the device thread waits on it while idle.
        self._wake = threading.Condition()
        self._requests: dict[str, Request] = {}
        self._joining: list[Request] = []
        self._aborted: set[str] = set()
        self._is_stopping = False

    # Called by any thread.

    @property
    def max_num_seqs(self) -> int:
        """Slots per model. Before start this is the configured number; memory may allow fewer."""
        if not self._served:
            return self._configured_max_num_seqs or DEFAULT_MAX_NUM_SEQS
        return min(model.executor.max_num_seqs for model in self._served.values())

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        infos = {name: model.executor.info for name, model in self._served.items()}
        return MappingProxyType(infos)

    def start(self, sink: StepSink) -> None:
        if self._thread is not None:
            raise RuntimeError("the engine was started before")
        self._thread = threading.Thread(target=self._main, args=(sink,), name="engine", daemon=True)
        self._thread.start()
        self._loaded.wait()
        if self._load_error is not None:
            raise self._load_error

    def submit(self, request: EngineRequest) -> None:
        accepted = self._request(request)
        with self._wake:
            if self._is_stopping:
                raise _not_serving()
            if request.request_id in self._requests:
                raise EngineError("duplicate_request", f"{request.request_id} is running already")
            self._requests[request.request_id] = accepted
            self._joining.append(accepted)
            self._wake.notify()

    def abort(self, request_id: str) -> None:
        with self._wake:
            if request_id in self._requests:
                self._aborted.add(request_id)

    def progress(self) -> Progress:
        is_idle = self._phase is Phase.SERVING and not self._requests
        return Progress(self._counter, self._phase, is_idle)

    def stats(self) -> EngineStats:
        models = list(self._served.values())
        num_running = sum(model.num_running for model in models)
        usages = [model.kv_cache_usage for model in models]
        return EngineStats(
            num_running=num_running,
            num_waiting=max(0, len(self._requests) - num_running),
            num_steps=self._times.num_steps,
            prompt_tokens=self._times.prompt_tokens,
            generated_tokens=self._times.generated_tokens,
            num_preemptions=0,
            kv_cache_usage=sum(usages) / len(usages) if usages else 0.0,
            schedule_s=self._times.schedule_s,
            run_s=self._times.run_s,
            sample_s=self._times.sample_s,
            emit_s=self._times.emit_s,
        )

    def shutdown(self) -> None:
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_TIMEOUT_S)

    def _request(self, request: EngineRequest) -> Request:
        """Validate, and replay a continuation; the costly part runs in the submitting thread."""
        if self._phase is not Phase.SERVING:
            raise _not_serving()
        served = self._served.get(request.model)
        if served is None:
            raise EngineError("model_not_found", f"model {request.model} is not loaded here")
        executor = served.executor
        check_request(request, executor.info)
        try:
            return Request(
                request,
                decoder=executor.decoder(),
                eos_token_ids=executor.eos_token_ids,
                context_length=executor.info.context_length,
                seed=executor.seed(request),
            )
        except Exception as error:  # the tokenizer's own, from replaying a continuation
            raise EngineError("engine_error", f"replay failed: {error}", retryable=True) from error

    # Called by the device thread only.

    def _main(self, sink: StepSink) -> None:
        try:
            self._load_models()
        except BaseException as error:
            self._load_error, self._phase = error, Phase.STOPPED
            return
        finally:
            self._loaded.set()
        failure = None
        try:
            while self._wait_for_work():
                self._step(sink)
        except Exception as error:  # a bug of ours: every request must still hear of its end
            log.exception("engine_loop_failed")
            failure = EngineError("engine_error", f"the step loop failed: {error}", retryable=True)
        self._stop(sink, failure)

    def _load_models(self) -> None:
        executors = self._load(self._report)
        self._served = {
            executor.info.name: ServedModel(executor, self._max_num_batched_tokens, self._times)
            for executor in executors
        }
        self._phase = Phase.SERVING

    def _report(self, what: str, fraction: float) -> None:
        self._counter += 1
        if self._on_progress is not None:
            self._on_progress(what, fraction)

    def _wait_for_work(self) -> bool:
        """Block while there is nothing to do. False means stop."""
        with self._wake:
            self._wake.wait_for(lambda: self._is_stopping or self._requests)
            return not self._is_stopping

    def _step(self, sink: StepSink) -> None:
        """Let requests in and out, then one step of each model that has work."""
        outputs = self._update_membership()
        for model in self._served.values():
            if model.has_work:
                self._emit(sink, outputs + model.step())
                outputs = []
                self._counter += 1
        self._emit(sink, outputs)

    def _update_membership(self) -> list[TokenOutput]:
        """Let in what was submitted and out what was aborted or is late, since the last step."""
        now = time.monotonic()
        with self._wake:  # one snapshot: an abort must never overtake its own submit
            joining, self._joining = self._joining, []
            aborted, self._aborted = self._aborted, set()
            requests = list(self._requests.values())
        outputs = [r.output_of_replay() for r in joining if r.is_finished]
        for request in joining:
            if not request.is_finished:
                self._served[request.model].add(request)
        for request in requests:
            if not request.is_finished and (reason := _reason_to_leave(request, aborted, now)):
                outputs.append(self._leave(request, reason))
        return outputs

    def _leave(self, request: Request, reason: FinishReason) -> TokenOutput:
        self._served[request.model].remove(request)
        return request.finish(reason)

    def _emit(self, sink: StepSink, outputs: Sequence[TokenOutput]) -> None:
        if not outputs:
            return
        started = time.perf_counter()
        self._forget(output.request_id for output in outputs if output.finish_reason)
        try:
            sink(outputs)
        except Exception:  # a sink may not raise; the other requests must not pay for it
            log.exception("engine_sink_failed", num_outputs=len(outputs))
        self._times.emit_s += time.perf_counter() - started

    def _forget(self, request_ids: Iterable[str]) -> None:
        """Before the sink hears of the end, so that the id is free for a new submit by then."""
        with self._wake:
            for request_id in request_ids:
                self._requests.pop(request_id, None)
                self._aborted.discard(request_id)

    def _stop(self, sink: StepSink, failure: EngineError | None) -> None:
        with self._wake:
            self._is_stopping, self._phase = True, Phase.STOPPED
            self._joining = []
            remaining = list(self._requests.values())
        self._emit(sink, [_last_output(request, failure) for request in remaining])


def _not_serving() -> EngineError:
    return EngineError("engine_unavailable", "the engine is not serving", retryable=True)


def _reason_to_leave(request: Request, aborted: set[str], now: float) -> FinishReason | None:
    if request.request_id in aborted:
        return FinishReason.ABORT
    if request.deadline is not None and request.deadline <= now:
        return FinishReason.DEADLINE
    return None


def _last_output(request: Request, failure: EngineError | None) -> TokenOutput:
    if request.is_finished:
        return request.output_of_replay()
    return request.finish(FinishReason.ERROR if failure else FinishReason.ABORT, failure)
