"""A worker process begins: what it builds, in which order, and by what it hears of its end."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from celery.utils.dispatch import Signal
from structlog.testing import capture_logs

from store.worker_models import WorkerModel
from tasks.queues import queues_of_pool
from workers.inference import bootstrap, engine_metrics
from workers.inference import pool as task_pool
from workers.inference.bootstrap import NO_POOL, SWITCH_INTERVAL_S

MODEL = WorkerModel(name="one", source="here", revision=None, dtype="auto", context_length=10)


class _Process:
    """What a worker process is made of, and what happened to it, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.happened: list[str] = []
        self.models = {"one"}
        self.pool_options: dict[str, Any] = {}
        self.stats: Any = None
        monkeypatch.setenv("MILLRACE_POOL", "demo")
        monkeypatch.setenv("MILLRACE_ENGINE", "stub")
        for name in ("_runtime", "_drain", "_idle_look"):
            monkeypatch.setattr(bootstrap, name, None)
        monkeypatch.setattr(bootstrap, "_services", [])
        monkeypatch.setattr(task_pool, "_terminate", None)
        monkeypatch.setattr(bootstrap, "sync_pool", self._pool)
        monkeypatch.setattr(bootstrap, "list_worker_models", lambda *_: [MODEL])
        monkeypatch.setattr(bootstrap, "build_engine", self._engine)
        for name in ("Publisher", "Heartbeat", "CancelListener"):
            monkeypatch.setattr(bootstrap, name, self._part(name))
        monkeypatch.setattr(engine_metrics, "export", self._export)
        for name in ("configure_logs", "serve_metrics"):
            monkeypatch.setattr(bootstrap, name, self._note(name))
        queues = SimpleNamespace(add=lambda _: None, select=self._select)
        self.worker = SimpleNamespace(app=SimpleNamespace(amqp=SimpleNamespace(queues=queues)))
        self.lanes: list[str] = []

    def _note(self, what: str) -> Any:
        return lambda: self.happened.append(what)

    def _part(self, name: str) -> Any:
        def make(_of: Any) -> Any:
            start, stop = self._note(f"{name} starts"), self._note(f"{name} stops")
            return SimpleNamespace(start=start, stop=stop, on_step=f"{name}'s sink")

        return make

    def _pool(self, _url: str, **options: Any) -> Any:
        self.pool_options = options
        return SimpleNamespace(
            open=lambda *, wait: self.happened.append(f"pool opens, {wait=}"),
            close=self._note("pool closes"),
            connection=self._connection,
        )

    @contextmanager
    def _connection(self) -> Iterator[str]:
        assert self.happened[-1] == "pool opens, wait=True"
        yield "connection"

    def _engine(self, config: Any, **_: Any) -> Any:
        assert config.stub.model_names == ("one",)
        return SimpleNamespace(
            models=self.models,
            refused={"one": "too large"},
            max_num_seqs=3,
            stats=lambda: None,
            start=lambda sink: self.happened.append(f"engine starts with {sink}"),
            shutdown=self._note("engine stops"),
        )

    def _export(self, _registry: Any, stats: Any) -> None:
        assert stats() is None
        self.happened.append("metrics of the engine")

    def _select(self, lanes: list[str]) -> None:
        self.lanes = lanes

    def start(self) -> list[str]:
        """As Celery does; what was logged."""
        with capture_logs() as logs:
            bootstrap._start(self.worker, self._part("IdleLook"))
        return [entry["event"] for entry in logs]


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Process]:
    interval_s = sys.getswitchinterval()
    yield _Process(monkeypatch)
    sys.setswitchinterval(interval_s)


def _names(pool: str) -> list[str]:
    return [queue.name for queue in queues_of_pool(pool)]


def test_a_worker_is_built_before_it_takes_any_job(process: _Process) -> None:
    assert process.start() == ["worker_started"]

    assert process.happened == [
        "configure_logs",
        "pool opens, wait=True",
        "engine starts with Publisher's sink",
        "Publisher starts",
        "Heartbeat starts",
        "CancelListener starts",
        "metrics of the engine",
        "serve_metrics",
    ]
    assert process.pool_options == {
        "application_name": "millrace-inference",
        "max_size": 8,
        "min_size": 1,
        "plans_once": True,
    }
    assert process.worker.concurrency == bootstrap.runtime().max_running == 5
    assert process.lanes == _names("demo")
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)


def test_a_revoke_ends_what_the_worker_runs_from_the_start_on(
    process: _Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminated: list[int] = []
    monkeypatch.setattr(bootstrap, "_terminate_thread", terminated.append)

    process.start()
    task_pool.TaskPool(limit=1).terminate_job(7)

    assert terminated == [7]


def test_a_worker_without_models_consumes_nothing_and_says_so(process: _Process) -> None:
    process.models = set()

    assert process.start() == ["worker_without_models", "worker_started"]
    assert process.lanes == _names(NO_POOL)


def test_all_that_began_ends(process: _Process, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[int, Any] = {}
    monkeypatch.setattr(signal, "signal", heard.__setitem__)
    process.start()
    process.happened.clear()
    step = bootstrap.LifeCycle.__new__(bootstrap.LifeCycle)

    step.start(None)
    bootstrap._stop()

    assert heard == dict.fromkeys(
        (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT), bootstrap._on_signal
    )
    assert process.happened == [
        "IdleLook starts",
        "IdleLook stops",
        "CancelListener stops",
        "Heartbeat stops",
        "Publisher stops",
        "engine stops",
        "pool closes",
    ]


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> dict[str, Signal]:
    """Celery's, but nobody else hears them."""
    found = {name: Signal(name) for name in ("worker_init", "worker_shutdown", "task_revoked")}
    for name, sent in found.items():
        monkeypatch.setattr(bootstrap, name, sent)
    return found


def test_celery_says_when_a_worker_begins_and_ends_and_what_is_revoked(
    signals: dict[str, Signal], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[Any, ...]] = []

    def note(name: str) -> Any:
        def noted(*of: Any, sender: Any = None, request: Any = None, **_: Any) -> None:
            said.append((name, *of, sender, request))

        return noted

    names = ("_start", "_stop", "_on_revoked")
    noted = {name: note(name) for name in names}
    for name in names:
        monkeypatch.setattr(bootstrap, name, noted[name])

    bootstrap.connect_signals(cast(Any, "idle look"))
    gc.collect()  # Celery holds what it calls by weak references, unless it is told otherwise
    signals["worker_init"].send(sender="worker")
    signals["task_revoked"].send(sender="worker", request="request", terminated=False)
    signals["worker_shutdown"].send(sender="worker")

    assert said == [
        ("_start", "worker", "idle look", None, None),
        ("_on_revoked", "worker", "request"),
        ("_stop", "worker", None),
    ]


def test_a_worker_that_can_not_start_ends(
    signals: dict[str, Signal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery would go on, and take jobs without an engine."""

    def fail(*_: Any) -> None:
        raise ValueError("no model in pool 'demo'")

    monkeypatch.setattr(bootstrap, "_start", fail)
    bootstrap.connect_signals(cast(Any, "idle look"))

    with (
        capture_logs(),
        pytest.raises(SystemExit, match="inference worker not started: no model in pool 'demo'"),
    ):
        signals["worker_init"].send(sender="worker")
