"""transformers' continuous batching as an Engine: a baseline, and a fallback for other models.

The library batches, computes and samples; what a request's tokens mean (text, stop strings, eos,
limits) is decided here as everywhere. It can't suppress a token, so under min_tokens an early eos
is taken as an ordinary token. One model; no prefix cache, as the library's knows no salt.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from types import MappingProxyType
from typing import Any

import structlog
import torch

from workers.inference.engine.config import DEFAULT_MAX_NUM_SEQS, EngineConfig, ModelSpec
from workers.inference.engine.counters import Counters
from workers.inference.engine.detokenizer import TokenizerDecoder
from workers.inference.engine.engine import OnProgress
from workers.inference.engine.errors import EngineError, is_device_lost, reason_of
from workers.inference.engine.executor import SampledToken
from workers.inference.engine.model import LoadedModel, choose_device, load_model
from workers.inference.engine.proof import (
    ProofError,
    check_continuation,
    continuation_probe,
    cut_windows,
)
from workers.inference.engine.protocol import (
    EngineRequest,
    EngineStats,
    FinishReason,
    ModelInfo,
    Phase,
    Progress,
    SamplingParams,
    StepSink,
    TokenOutput,
)
from workers.inference.engine.request import Request
from workers.inference.engine.roster import Roster, not_serving
from workers.inference.engine.transformers_manager import Manager
from workers.inference.engine.validation import check_request

_JOIN_TIMEOUT_S = 30.0
_PROOF_TIMEOUT_S = 120.0  # of the request that shows at load what the library computes
_POLL_S = 0.05  # how soon aborts and deadlines are seen while a step of the library goes on

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Running:
    """A request in the library's hands, under an id of its own: ids of ours may come again."""

    library_id: str
    request: Request
    num_given: int  # tokens it was handed over with; the library counts from there


class TransformersEngine:
    """See protocol.Engine. Its own thread carries tokens from the library's thread to the sink."""

    def __init__(
        self,
        config: EngineConfig,
        on_progress: OnProgress | None = None,
        *,
        attention: str | None = None,
        is_greedy_only: bool = False,
    ) -> None:
        """`attention` as transformers names it; without sampling the library is faster."""
        if len(config.models) != 1:
            raise EngineError("model_load_failed", "this kind of engine serves exactly one model")
        self._config = config
        self._on_progress = on_progress
        self._attention = attention
        self._is_greedy_only = is_greedy_only
        self._manager: Manager | None = None
        self._refused: dict[str, str] = {}
        self._phase = Phase.LOADING
        self._num_reports = 0
        self._counters = Counters()
        self._roster = Roster()
        self._running: dict[str, _Running] = {}  # by library id
        self._library_ids = map(str, count())
        self._arrived: queue.SimpleQueue[Sequence[Any]] = queue.SimpleQueue()  # one item a step
        self._outputs: list[TokenOutput] = []  # not emitted yet
        self._thread: threading.Thread | None = None
        self._is_loaded = threading.Event()
        self._load_error: BaseException | None = None

    # Called by any thread.

    @property
    def max_num_seqs(self) -> int:
        return self._config.max_num_seqs or DEFAULT_MAX_NUM_SEQS

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        infos = [self._manager.loaded.info] if self._manager else []
        return MappingProxyType({info.name: info for info in infos})

    @property
    def refused(self) -> Mapping[str, str]:
        return MappingProxyType(self._refused)

    def start(self, sink: StepSink) -> None:
        if self._thread is not None:
            raise RuntimeError("the engine was started before")
        self._thread = threading.Thread(target=self._main, args=(sink,), name="engine", daemon=True)
        self._thread.start()
        self._is_loaded.wait()
        if self._load_error is not None:
            raise self._load_error

    def submit(self, request: EngineRequest) -> None:
        manager = self._manager
        if self._phase is not Phase.SERVING:
            raise not_serving()
        if manager is None:
            raise EngineError("model_not_found", f"model {request.model} is not loaded here")
        loaded = manager.loaded
        if request.model != loaded.info.name:
            raise EngineError("model_not_found", f"model {request.model} is not loaded here")
        check_request(request, loaded.info)
        if request.grammar is not None:
            raise EngineError("unsupported", "this engine does not support grammars")
        manager.check(request.sampling)
        self._roster.add([_choice(request, loaded)])

    def abort(self, request_id: str) -> None:
        self._roster.abort(request_id)

    def progress(self) -> Progress:
        is_idle = self._phase is Phase.SERVING and self._roster.is_empty
        return Progress(self._num_reports + self._num_steps, self._phase, is_idle)

    def stats(self) -> EngineStats:
        manager = self._manager
        num_running = manager.num_running if manager else 0
        return EngineStats(
            num_running=num_running,
            num_waiting=max(0, self._roster.num_choices - num_running),
            kv_cache_usage=manager.kv_cache_usage if manager else 0.0,
            **asdict(replace(self._counters, num_steps=self._num_steps)),
        )

    def shutdown(self) -> None:
        self._roster.close()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_TIMEOUT_S)

    @property
    def _num_steps(self) -> int:
        return self._manager.num_steps if self._manager else 0

    # Called by the engine's thread only.

    def _main(self, sink: StepSink) -> None:
        try:
            self._load()
        except BaseException as error:
            self._load_error, self._phase = error, Phase.STOPPED
            return
        finally:
            self._is_loaded.set()
        fault = None
        try:
            while self._roster.wait():
                self._step(sink)
        except Exception as error:  # a bug of ours: every request must still hear of its end
            log.exception("engine_loop_failed")
            fault = _engine_error(error)
        self._stop(sink, fault)

    def _load(self) -> None:
        config, spec = self._config, self._config.models[0]
        self._report(spec.name, 0.0)
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        try:
            self._manager = self._load_manager(config, spec)
        except Exception as error:  # of files and libraries, each in its own way
            if is_device_lost(error):
                raise
            self._refused[spec.name] = reason_of(error)
            log.error("model_refused", model=spec.name, reason=" ".join(str(error).split()))
        self._report("ready", 1.0)
        self._phase = Phase.SERVING

    def _load_manager(self, config: EngineConfig, spec: ModelSpec) -> Manager:
        """The library's manager over a model that it has shown to compute as the model itself."""
        loaded = load_model(
            spec,
            choose_device(config.device),
            is_hub_allowed=config.is_hub_allowed,
            on_share=self._note_share,
        )
        with cut_windows(loaded.model, loaded.info.context_length) as has_windows:
            manager = self._proven_manager(loaded)
        if not has_windows:
            return manager
        manager.stop()  # it has built its cache for short windows
        return self._new_manager(loaded)

    def _new_manager(self, loaded: LoadedModel) -> Manager:
        return Manager(  # its thread is a daemon because this one is
            loaded,
            self._config,
            attention=self._attention,
            is_greedy_only=self._is_greedy_only,
            deliver=self._arrived.put,
        )

    def _proven_manager(self, loaded: LoadedModel) -> Manager:
        """Raises ProofError."""
        manager = self._new_manager(loaded)
        try:
            self._prove(manager)
        except BaseException:
            manager.stop()
            raise
        return manager

    def _prove(self, manager: Manager) -> None:
        """One greedy request before any other. Raises ProofError."""
        prompt, num_tokens = continuation_probe(manager.loaded)
        greedy = SamplingParams(max_tokens=num_tokens, temperature=0.0)
        manager.add(next(self._library_ids), prompt, max_tokens=num_tokens, sampling=greedy)
        output, deadline = None, time.monotonic() + _PROOF_TIMEOUT_S
        while output is None or len(output.generated_tokens) < num_tokens:
            try:
                *_, output = self._arrived.get(timeout=deadline - time.monotonic())
            except (queue.Empty, ValueError):  # a ValueError: the time is over already
                raise ProofError("it gave no answer when it was tried") from None
            if output.error is not None:
                raise ProofError(f"it failed when it was tried: {output.error}")
            self._num_reports += 1
        check_continuation(manager.loaded, prompt, output.generated_tokens)

    def _note_share(self, share: float) -> None:
        """A weight was read: proof of life, nothing to tell."""
        self._num_reports += 1

    def _report(self, what: str, fraction: float) -> None:
        self._num_reports += 1
        if self._on_progress is not None:
            self._on_progress(what, fraction)

    def _step(self, sink: StepSink) -> None:
        """Let requests in and out, then pass on what the library made meanwhile."""
        self._update_membership()
        self._emit(sink)
        try:
            arrived = self._arrived.get(timeout=_POLL_S)
        except queue.Empty:
            return
        for output in arrived:
            if (running := self._running.get(output.request_id)) is not None:
                self._outputs.append(self._take(running, output))
        self._emit(sink)
        assert self._manager
        self._counters.num_restarts += self._manager.restart_if_dead()

    def _update_membership(self) -> None:
        joined, leaving = self._roster.changes(time.monotonic())
        late = {id(request) for request, _ in leaving}
        for request in joined:
            if request.is_finished:
                self._outputs.append(request.output_of_replay())
            elif id(request) not in late:
                self._hand_over(request)
        for request, reason in leaving:
            if not request.is_finished:
                self._take_back(request)
                self._outputs.append(request.finish(reason))

    def _hand_over(self, request: Request) -> None:
        assert self._manager
        sampling, num_given = request.sampling, request.num_tokens
        left_in_context = self._manager.loaded.info.context_length - num_given
        running = _Running(next(self._library_ids), request, num_given)
        self._running[running.library_id] = running
        self._counters.prompt_tokens += num_given
        try:
            self._manager.add(
                running.library_id,
                request.token_ids,
                max_tokens=min(sampling.max_tokens - request.num_generated, left_in_context),
                sampling=sampling,
            )
        except EngineError as error:
            self._outputs.append(self._fail(request, error))

    def _take_back(self, request: Request) -> None:
        assert self._manager
        for running in [r for r in self._running.values() if r.request is request]:
            del self._running[running.library_id]
            self._manager.cancel(running.library_id)

    def _take(self, running: _Running, output: Any) -> TokenOutput:
        """The newest token of a request, or its failure."""
        request = running.request
        if output.error is not None:
            return self._fail(request, _engine_error(output.error))
        token_id = output.generated_tokens[request.num_tokens - running.num_given]
        self._counters.generated_tokens += 1
        try:
            taken = request.append(SampledToken(token_id))
        except Exception as error:  # the tokenizer's own
            log.exception("engine_request_failed", request_id=request.request_id)
            return self._fail(request, _engine_error(error))
        if request.is_finished:
            self._take_back(request)
        return taken

    def _fail(self, request: Request, error: EngineError) -> TokenOutput:
        self._take_back(request)
        return request.finish(FinishReason.ERROR, error)

    def _emit(self, sink: StepSink) -> None:
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

    def _stop(self, sink: StepSink, fault: EngineError | None) -> None:
        self._roster.close()
        self._phase = Phase.STOPPED
        self._emit(sink)
        reason = FinishReason.ERROR if fault else FinishReason.ABORT
        self._outputs += [
            r.output_of_replay() if r.is_finished else r.finish(reason, fault)
            for r in self._roster.remaining()
        ]
        self._emit(sink)
        if self._manager is not None:
            self._manager.stop()


def _choice(request: EngineRequest, loaded: LoadedModel) -> Request:
    try:
        return Request(
            request,
            decoder=TokenizerDecoder(
                loaded.text.tokenizer,
                skip_special_tokens=request.sampling.skip_special_tokens,
            ),
            eos_token_ids=loaded.text.eos_token_ids,
            context_length=loaded.info.context_length,
        )
    except Exception as error:  # the tokenizer's own, from replaying a continuation
        raise _engine_error(error) from error


def _engine_error(error: object) -> EngineError:
    return EngineError("engine_error", str(error), retryable=True)
