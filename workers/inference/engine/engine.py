"""The continuous-batching engine: one thread owns the device and takes step after step.

Requests join and leave between any two steps. What a step computes is an Executor's affair, so the
stub and the real models share everything here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from types import MappingProxyType

import structlog

from workers.inference.engine.choices import make_choices
from workers.inference.engine.config import DEFAULT_MAX_NUM_SEQS
from workers.inference.engine.counters import Counters
from workers.inference.engine.errors import EngineError, is_device_lost, reason_of
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
from workers.inference.engine.roster import Roster, not_serving
from workers.inference.engine.served import ServedModel
from workers.inference.engine.supervisor import supervise
from workers.inference.engine.validation import check_fits, check_request

# Says what is being loaded, and how much of all loading is done (0 to 1). The engine passes on no
# more than a person wants to read; each report of a load moves the progress counter.
OnProgress = Callable[[str, float], None]
# Loads every model; runs in the device thread and reports each step of the load.
LoadExecutors = Callable[[OnProgress], Sequence[Executor]]

_REPORT_INTERVAL_S = 5.0  # between two reports on the same thing
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
        enable_prefix_cache: bool = True,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._load = load
        self._configured_max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._enable_prefix_cache = enable_prefix_cache
        self._on_progress = on_progress
        self._served: dict[str, ServedModel] = {}
        self._refused: dict[str, str] = {}
        self._phase = Phase.LOADING
        self._progress_counter = 0
        self._patience_s = 0.0  # with the step at work
        self._last_report = ("", 0.0)  # what it was about, and when it was passed on
        self._counters = Counters()
        self._roster = Roster()
        self._outputs: list[TokenOutput] = []  # of the step at work, not emitted yet
        self._thread: threading.Thread | None = None
        self._loaded = threading.Event()
        self._load_error: BaseException | None = None

    # Called by any thread.

    @property
    def max_num_seqs(self) -> int:
        """Requests in one batch. Before start the configured number; memory may allow fewer."""
        if not self._served:
            return self._configured_max_num_seqs or DEFAULT_MAX_NUM_SEQS
        return min(model.executor.max_num_seqs for model in self._served.values())

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        infos = {name: model.executor.info for name, model in self._served.items()}
        return MappingProxyType(infos)

    @property
    def refused(self) -> Mapping[str, str]:
        return MappingProxyType(self._refused)

    def start(self, sink: StepSink) -> None:
        if self._thread is not None:
            raise RuntimeError("the engine was started before")
        self._thread = threading.Thread(target=self._main, args=(sink,), name="engine", daemon=True)
        self._thread.start()
        self._loaded.wait()
        if self._load_error is not None:
            raise self._load_error

    def submit(self, request: EngineRequest) -> None:
        """The costly part runs here: grammars, replay of continuations, digests of the prompt."""
        if self._phase is not Phase.SERVING:
            raise not_serving()
        served = self._served.get(request.model)
        if served is None:
            raise EngineError("model_not_found", f"model {request.model} is not loaded here")
        executor = served.executor
        check_request(request, executor.info)
        check_fits(
            request,
            executor.info,
            num_pages=executor.num_pages,
            page_size=executor.page_size,
        )
        choices = make_choices(request, executor)
        served.prepare(choices)
        self._roster.add(choices)

    def abort(self, request_id: str) -> None:
        self._roster.abort(request_id)

    def progress(self) -> Progress:
        is_idle = self._phase is Phase.SERVING and self._roster.is_empty
        return Progress(self._progress_counter, self._phase, is_idle, self._patience_s)

    def stats(self) -> EngineStats:
        models, counters = list(self._served.values()), self._counters
        num_running = sum(model.num_running for model in models)
        usages = [model.kv_cache_usage for model in models]
        return EngineStats(
            num_running=num_running,
            num_waiting=max(0, self._roster.num_choices - num_running),
            kv_cache_usage=sum(usages) / len(usages) if usages else 0.0,
            **asdict(counters),
        )

    def shutdown(self) -> None:
        self._roster.close()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_TIMEOUT_S)

    # Called by the device thread only.

    def _main(self, sink: StepSink) -> None:
        try:
            self._load_models()
        except BaseException as error:
            self._load_error, self._phase = error, Phase.STOPPED
            return
        finally:
            self._loaded.set()
        fault = supervise(lambda: self._serve(sink), lambda: self._restart(sink))
        self._stop(sink, fault)

    def _load_models(self) -> None:
        executors = self._load(self._report)
        self._served = {
            executor.info.name: ServedModel(
                executor,
                max_num_batched_tokens=self._max_num_batched_tokens,
                enable_prefix_cache=self._enable_prefix_cache,
                counters=self._counters,
            )
            for executor in executors
        }
        self._phase = Phase.SERVING

    def _report(self, what: str, fraction: float) -> None:
        self._progress_counter += 1
        before, when = self._last_report
        now = time.monotonic()
        if self._on_progress is not None and (what != before or now - when > _REPORT_INTERVAL_S):
            self._last_report = what, now
            self._on_progress(what, fraction)

    @contextmanager
    def _declared(self, phase: Phase) -> Iterator[None]:
        """Let progress() tell of a phase that has a time limit of its own."""
        before, self._phase = self._phase, phase
        try:
            yield
        finally:
            self._phase = before

    @contextmanager
    def _refusing(self, model: str) -> Iterator[None]:
        """What is wrong with one model costs that model alone."""
        try:
            yield
        except Exception as error:  # of files and libraries, each in its own way
            if is_device_lost(error):
                raise
            self._refused[model] = reason_of(error)
            log.error("model_refused", model=model, reason=" ".join(str(error).split()))

    def _serve(self, sink: StepSink) -> None:
        while self._roster.wait():
            self._step(sink)

    def _step(self, sink: StepSink) -> None:
        """Let requests in and out, then one step of each model that has work."""
        self._update_membership()
        for model in self._served.values():
            if model.has_work:
                self._patience_s = model.patience_s
                model.step(self._outputs)
                self._emit(sink)
                self._progress_counter += 1
        self._emit(sink)

    def _update_membership(self) -> None:
        """Let in what was submitted and out what was aborted or is late."""
        joined, leaving = self._roster.changes(time.monotonic())
        for request in joined:
            self._join(request)
        for request, reason in leaving:
            if not request.is_finished:
                self._outputs.append(request.finish(reason))
                self._served[request.model].remove(request)

    def _join(self, request: Request) -> None:
        if request.is_finished:
            self._outputs.append(request.output_of_replay())
        else:
            self._served[request.model].add(request)

    def _emit(self, sink: StepSink) -> None:
        """Hand over what there is. An id is free again before the sink hears of its end."""
        outputs, self._outputs = self._outputs, []
        if not outputs:
            return
        started = time.perf_counter()
        self._roster.forget(outputs)
        try:
            sink(outputs)
        except Exception:  # a sink may not raise; the other requests must not pay for it
            log.exception("engine_sink_failed", num_outputs=len(outputs))
        self._counters.emit_s += time.perf_counter() - started

    def _restart(self, sink: StepSink) -> None:
        """After a fault of the loop: every request begins again from its tokens so far."""
        self._counters.num_restarts += 1
        self._emit(sink)  # what was made before the fault counts
        remaining = self._roster.remaining()
        for name, model in self._served.items():
            model.restart(r for r in remaining if r.model == name and not r.is_finished)
        self._outputs += [r.output_of_replay() for r in remaining if r.is_finished]
        self._emit(sink)

    def _stop(self, sink: StepSink, fault: Exception | None) -> None:
        self._roster.close()
        self._phase = Phase.STOPPED
        self._emit(sink)
        self._outputs += [_last_output(request, fault) for request in self._roster.remaining()]
        self._emit(sink)


def _last_output(request: Request, fault: Exception | None) -> TokenOutput:
    if request.is_finished:
        return request.output_of_replay()
    if fault is None:
        return request.finish(FinishReason.ABORT)
    error = EngineError("engine_error", f"the step loop failed: {fault}", retryable=True)
    return request.finish(FinishReason.ERROR, error)
