"""Builds the inference worker at `worker_init` and takes it down again.

`worker_init` fires before the pool is built, in the process that runs the tasks: no fork follows,
so the device may be initialised. Celery swallows ordinary exceptions from signal handlers and would
take jobs without an engine, so a failure raises SystemExit.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Protocol

import redis
import structlog
from celery import bootsteps
from celery.signals import task_revoked, worker_init, worker_shutdown
from celery.worker import state as celery_state
from prometheus_client import REGISTRY

from store.attempts import ask_cancel
from store.pools import SyncPool, sync_pool
from store.settings import DatabaseSettings
from store.worker_models import WorkerModel, list_worker_models
from tasks.ids import uuid7
from tasks.inference import job_of_task_id
from tasks.logs import configure_logs
from tasks.metrics import serve_metrics
from tasks.queues import queues_of_pool
from tasks.settings import RedisSettings
from workers.inference import engine_metrics
from workers.inference import pool as task_pool
from workers.inference.cancels import CancelListener
from workers.inference.drain import Drain
from workers.inference.engine.config import EngineConfig, ModelSpec, StubConfig
from workers.inference.engine.factory import build_engine
from workers.inference.heartbeat import Heartbeat
from workers.inference.publisher import Publisher
from workers.inference.runtime import Runtime
from workers.inference.settings import WorkerSettings

log = structlog.get_logger(__name__)

STREAM_TIMEOUT_S = 1.0  # one call to Redis; a stall longer than this counts as an outage
# The engine's thread computes in Python between two steps; a thread with a fresh ticket, or a token
# to publish, must not wait the default 5 ms for its turn.
SWITCH_INTERVAL_S = 0.0005
# Whose lanes a worker without models consumes: no catalog can name it, so nobody sends there. Of no
# lane at all Celery would make every queue there is.
NO_POOL = "-"
APPLICATION_NAME = "millrace-inference"


class Service(Protocol):
    """A background thread of the worker."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End; called once."""


class LifeCycle(bootsteps.StartStopStep):
    """Looks for jobs once signals are heard, and waits at the end for all that was claimed.

    Celery waits for the pool's threads alone, and for as long as their jobs last. Its pool starts
    before this and stops after it, its consumer the other way round.
    """

    requires: ClassVar[set[str]] = {"celery.worker.components:Pool"}

    def start(self, _worker: Any) -> None:
        """Celery has installed its own handlers by now."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, _on_signal)
        assert _idle_look is not None
        _idle_look.start()
        _services.append(_idle_look)

    def close(self, _worker: Any) -> None:
        """The first that happens at every end, also when the consumer broke."""
        assert _drain is not None
        _drain.begin()

    def stop(self, _worker: Any) -> None:
        """Every end comes this way."""
        assert _drain is not None
        _drain.wait()
        _stop()

    def terminate(self, worker: Any) -> None:
        """No end is in such a hurry that jobs are dropped."""
        self.stop(worker)


_runtime: Runtime | None = None
_drain: Drain | None = None
_idle_look: Service | None = None
_services: list[Service] = []


def runtime() -> Runtime:
    """The process's runtime. Raises RuntimeError outside a started inference worker."""
    if _runtime is None:
        raise RuntimeError("the inference worker has not been started")
    return _runtime


def connect_signals(idle_look: type[Any]) -> None:
    """Tie the worker's life cycle to Celery's. Called once, when the handler is imported."""

    def init(sender: Any, **_: Any) -> None:
        try:
            _start(sender, idle_look)
        except Exception as error:
            log.exception("worker_not_started")
            raise SystemExit(f"inference worker not started: {error}") from error

    worker_init.connect(init, weak=False)  # nobody else holds it
    worker_shutdown.connect(_stop)
    task_revoked.connect(_on_revoked)


def _start(worker: Any, idle_look: type[Any]) -> None:
    global _runtime, _drain, _idle_look  # noqa: PLW0603
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    settings = WorkerSettings()
    configure_logs()
    pool = sync_pool(
        DatabaseSettings().worker,
        application_name=APPLICATION_NAME,
        max_size=8,
        min_size=1,
        plans_once=True,
    )
    pool.open(wait=True)
    engine = build_engine(_engine_config(settings, pool), on_progress=_log_progress)
    streams = redis.Redis.from_url(
        RedisSettings().stream,
        socket_timeout=STREAM_TIMEOUT_S,
        socket_connect_timeout=STREAM_TIMEOUT_S,
        health_check_interval=10,
    )
    publisher = Publisher(streams)
    engine.start(publisher.on_step)
    _runtime = Runtime(settings, engine, pool, streams, publisher, worker_id=uuid7())
    publisher.start()
    _drain, _idle_look = Drain(_runtime), idle_look(_runtime)
    for service in (Heartbeat(_runtime), CancelListener(_runtime)):
        service.start()
        _services.append(service)
    _consume_pool(worker, settings.pool if engine.models else NO_POOL)
    worker.concurrency = _runtime.max_running
    task_pool.set_terminator(_terminate_thread)
    engine_metrics.export(REGISTRY, engine.stats)
    serve_metrics()
    if not engine.models:  # starting again would load them again, and change nothing
        log.error("worker_without_models", refused=dict(engine.refused))
    log.info("worker_started", models=sorted(engine.models), slots=engine.max_num_seqs)


def _consume_pool(worker: Any, pool: str) -> None:
    """All lanes of this pool, and nothing else."""
    queues = worker.app.amqp.queues
    lanes = queues_of_pool(pool)
    for lane in lanes:
        queues.add(lane)
    queues.select([lane.name for lane in lanes])


def _engine_config(settings: WorkerSettings, pool: SyncPool) -> EngineConfig:
    with pool.connection() as connection:
        models = list_worker_models(connection, settings.pool)
    if not models:
        raise ValueError(f"no model in pool {settings.pool!r}; run `millrace catalog apply`")
    if settings.engine == "stub":
        return EngineConfig(kind="stub", stub=_stub_config(settings, models))
    return EngineConfig(
        kind=settings.engine,
        device=settings.device,
        models=tuple(_spec(model, settings) for model in models),
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        num_threads=settings.num_threads,
        kv_memory_share=settings.kv_memory_share,
        enable_prefix_cache=settings.enable_prefix_cache,
        use_native_step=settings.use_native_step,
        use_cuda_kernels=settings.use_cuda_kernels,
        use_cuda_graphs=settings.use_cuda_graphs,
        is_hub_allowed=settings.allow_hub,
    )


def _spec(model: WorkerModel, settings: WorkerSettings) -> ModelSpec:
    local = settings.models_dir / Path(model.source)
    path = str(local) if local.is_dir() else model.source
    return ModelSpec(
        name=model.name,
        path=path,
        revision=model.revision,
        dtype=model.dtype,
        max_context=model.context_length,
    )


def _stub_config(settings: WorkerSettings, models: list[WorkerModel]) -> StubConfig:
    return StubConfig(
        model_names=tuple(model.name for model in models),
        refused=frozenset(settings.stub_refused),
        max_num_seqs=settings.stub_slots,
        context_length=max(model.context_length for model in models),
        step_ms=settings.stub_step_ms,
        token_ms=settings.stub_token_ms,
        prompt_token_ms=settings.stub_prompt_token_ms,
        num_tokens=settings.stub_num_tokens,
        oracle_path=settings.stub_oracle,
    )


def _log_progress(what: str, share: float) -> None:
    log.info("loading", what=what, percent=round(share * 100))


def _on_signal(number: int, _frame: FrameType | None) -> None:
    """SIGTERM drains. SIGQUIT, or SIGINT once more, gives back at once what runs.

    In place of Celery's handlers, which at SIGQUIT end the tasks as an operator's revoke does.
    """
    assert _drain is not None
    is_repeated = number == signal.SIGINT and _drain.has_begun
    _drain.begin(is_urgent=number == signal.SIGQUIT or is_repeated)
    celery_state.should_stop = os.EX_OK


def _stop(**_: Any) -> None:
    """After the last attempt; the second of two calls does nothing."""
    if _runtime is None or not _services:
        return
    while _services:
        _services.pop().stop()
    _runtime.publisher.stop()
    _runtime.engine.shutdown()
    _runtime.pool.close()
    log.info("worker_stopped")


def _on_revoked(request: Any, terminated: bool, **_: Any) -> None:
    """A revoke by an operator cancels the job; Celery's own note of it is this process's only."""
    job_id = job_of_task_id(request.id)
    if _runtime is not None and job_id is not None and not terminated:
        with _runtime.pool.connection() as connection:
            ask_cancel(connection, job_id, by="operator")


def _terminate_thread(ident: int) -> None:
    """A revoke with terminate: the job that runs on the ticket's thread."""
    if _runtime is None or (job := _runtime.of_thread(ident)) is None:
        return
    with _runtime.pool.connection() as connection:
        ask_cancel(connection, job.stream.job_id, by="operator")
    _runtime.abort(job)
