"""What starts, ends and revokes reach: the parts of a worker process, without any connection."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
import redis
from celery.worker import state as celery_state

from store.worker_models import WorkerModel
from tasks.ids import uuid7
from tasks.queues import queues_of_pool
from tests.unit.worker.test_job_stream import new_stream
from workers.inference import bootstrap
from workers.inference import pool as task_pool
from workers.inference.cancels import CancelListener
from workers.inference.drain import Drain
from workers.inference.engine.config import StubConfig
from workers.inference.handler import IdleLook
from workers.inference.heartbeat import Heartbeat
from workers.inference.pool import ApplyResult, TaskPool
from workers.inference.publisher import Publisher
from workers.inference.runtime import RunningJob
from workers.inference.settings import WorkerSettings


class _Drain:
    def __init__(self) -> None:
        self.has_begun = False
        self.heard: list[Any] = []

    def begin(self, *, is_urgent: bool = False) -> None:
        self.has_begun = True
        self.heard.append(is_urgent)

    def wait(self) -> None:
        self.heard.append("wait")


class _Part:
    """Whatever has to be ended."""

    def __init__(self, name: str, ended: list[str]) -> None:
        self._name, self._ended = name, ended

    def stop(self) -> None:
        self._ended.append(self._name)

    shutdown = close = stop


class _Pool:
    @contextmanager
    def connection(self) -> Any:
        yield "connection"


@pytest.fixture
def drain(monkeypatch: pytest.MonkeyPatch) -> _Drain:
    drain = _Drain()
    monkeypatch.setattr(bootstrap, "_drain", drain)
    monkeypatch.setattr(celery_state, "should_stop", None)
    return drain


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A process that runs; what of it has ended, in order."""
    ended: list[str] = []
    parts = {name: _Part(name, ended) for name in ("publisher", "engine", "pool")}
    monkeypatch.setattr(bootstrap, "_runtime", SimpleNamespace(**parts))
    services = [_Part(name, ended) for name in ("heartbeat", "cancels", "idle look")]
    monkeypatch.setattr(bootstrap, "_services", services)
    return ended


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Cancels that were asked for."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        bootstrap, "ask_cancel", lambda connection, job, by: asked.append((connection, job, by))
    )
    return asked


def test_there_is_no_runtime_outside_a_worker() -> None:
    with pytest.raises(RuntimeError):
        bootstrap.runtime()


@pytest.mark.parametrize(
    ("signals", "heard"),
    [
        ([signal.SIGTERM, signal.SIGTERM], [False, False]),
        ([signal.SIGQUIT], [True]),
        ([signal.SIGINT, signal.SIGINT], [False, True]),
        ([signal.SIGTERM, signal.SIGINT], [False, True]),
    ],
)
def test_what_signals_say(drain: _Drain, signals: list[int], heard: list[bool]) -> None:
    for number in signals:
        bootstrap._on_signal(number, None)

    assert drain.heard == heard
    assert celery_state.should_stop == os.EX_OK


def test_all_that_was_started_ends_once_and_in_order(ended: list[str]) -> None:
    bootstrap._stop()
    bootstrap._stop()

    assert ended == ["idle look", "cancels", "heartbeat", "publisher", "engine", "pool"]


def test_a_worker_that_never_started_has_nothing_to_end(
    monkeypatch: pytest.MonkeyPatch, ended: list[str]
) -> None:
    monkeypatch.setattr(bootstrap, "_runtime", None)

    bootstrap._stop()

    assert ended == []


def test_every_end_waits_for_what_runs(drain: _Drain, ended: list[str]) -> None:
    step = bootstrap.LifeCycle.__new__(bootstrap.LifeCycle)

    step.close(None)
    step.terminate(None)

    assert drain.heard == [False, "wait"]
    assert ended[-1] == "pool"


def _worker(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> SimpleNamespace:
    runtime = SimpleNamespace(pool=_Pool(), **fields)
    monkeypatch.setattr(bootstrap, "_runtime", runtime)
    return runtime


def test_a_revoke_cancels_the_job_of_its_ticket(
    monkeypatch: pytest.MonkeyPatch, asked: list[tuple[Any, ...]]
) -> None:
    job_id = uuid7()
    ticket, other = SimpleNamespace(id=f"{job_id.hex}.1"), SimpleNamespace(id="other")

    bootstrap._on_revoked(ticket, terminated=False)
    _worker(monkeypatch)
    bootstrap._on_revoked(other, terminated=False)
    bootstrap._on_revoked(ticket, terminated=True)  # see below
    before = list(asked)
    bootstrap._on_revoked(ticket, terminated=False)

    assert before == []
    assert asked == [("connection", job_id, "operator")]


def test_a_revoke_with_terminate_ends_what_the_thread_runs(
    monkeypatch: pytest.MonkeyPatch, asked: list[tuple[Any, ...]]
) -> None:
    job = RunningJob(new_stream(), uuid4())
    aborted: list[RunningJob] = []

    bootstrap._terminate_thread(7)
    _worker(monkeypatch, of_thread={7: job}.get, abort=aborted.append)
    bootstrap._terminate_thread(8)
    before = list(asked)
    bootstrap._terminate_thread(7)

    assert before == []
    assert asked == [("connection", job.stream.job_id, "operator")]
    assert aborted == [job]


def test_a_worker_consumes_its_pools_lanes_alone() -> None:
    added: list[Any] = []
    selected: list[str] = []
    queues = SimpleNamespace(add=added.append, select=selected.extend)
    worker = SimpleNamespace(app=SimpleNamespace(amqp=SimpleNamespace(queues=queues)))

    bootstrap._consume_pool(worker, "demo")

    lanes = queues_of_pool("demo")
    assert added == lanes
    assert selected == [lane.name for lane in lanes]


MODELS = [
    WorkerModel(name="one", source="here", revision=None, dtype="auto", context_length=10),
    WorkerModel(name="two", source="org/there", revision=None, dtype="bf16", context_length=20),
]


def _config(monkeypatch: pytest.MonkeyPatch, models: list[WorkerModel], **settings: Any) -> Any:
    def listed(connection: Any, pool: str) -> list[WorkerModel]:
        assert (connection, pool) == ("connection", "demo")
        return models

    monkeypatch.setattr(bootstrap, "list_worker_models", listed)
    return bootstrap._engine_config(WorkerSettings(pool="demo", **settings), cast(Any, _Pool()))


def test_a_pool_without_models_has_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no model in pool 'demo'"):
        _config(monkeypatch, [])


def test_the_stub_engine_serves_all_models_of_its_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(monkeypatch, MODELS, engine="stub", stub_slots=3)

    assert config.kind == "stub"
    assert isinstance(config.stub, StubConfig)
    assert (config.stub.model_names, config.stub.context_length) == (("one", "two"), 20)
    assert config.stub.max_num_seqs == 3


def test_models_are_folders_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()

    config = _config(monkeypatch, MODELS, engine="millrace", models_dir=tmp_path, max_num_seqs=5)

    assert (config.kind, config.max_num_seqs) == ("millrace", 5)
    shown = [(spec.name, spec.path, spec.dtype, spec.max_context) for spec in config.models]
    assert shown == [
        ("one", str(tmp_path / "here"), "auto", 10),
        ("two", "org/there", "bf16", 20),
    ]


# The pool of threads that tickets run on.


def test_a_ticket_runs_on_a_thread_that_is_its_pid(monkeypatch: pytest.MonkeyPatch) -> None:
    terminated: list[int] = []
    pool = TaskPool(limit=1)
    pool.on_start()
    accepted: list[Any] = []
    results: list[Any] = []
    over = threading.Event()

    def done(result: Any) -> None:
        results.append(result)
        over.set()

    pool.terminate_job(3)  # nobody has said how yet
    monkeypatch.setattr(task_pool, "_terminate", None)
    task_pool.set_terminator(terminated.append)
    result = pool.on_apply(
        lambda first, second: (first, second, threading.get_ident()),
        (1,),
        {"second": 2},
        callback=done,
        accept_callback=lambda pid, _at: accepted.append(pid),
    )
    assert over.wait(5)
    pool.terminate_job(accepted[0])
    pool.on_stop()

    assert isinstance(result, ApplyResult)
    result.terminate()
    [(first, second, ident)] = results
    assert (first, second) == (1, 2)
    assert accepted == terminated == [ident]


def test_a_ticket_needs_no_arguments() -> None:
    pool = TaskPool(limit=1)
    pool.on_start()
    over = threading.Event()

    pool.on_apply(over.set)

    assert over.wait(5)
    pool.on_stop()


# The look for work while no tickets come.


def _look(*, quiet_s: float, num_attempts: int) -> IdleLook:
    engine = SimpleNamespace(max_num_seqs=2)
    now = time.monotonic()
    runtime = SimpleNamespace(
        engine=engine, last_ticket_at=now - quiet_s, num_attempts=num_attempts
    )
    return IdleLook(cast(Any, runtime), interval_s=10.0)


@pytest.mark.parametrize(
    ("quiet_s", "num_attempts", "may_look"),
    [(11.0, 1, True), (11.0, 2, False), (11.0, 3, False), (5.0, 0, False)],
)
def test_when_an_idle_worker_looks_for_work(
    quiet_s: float, num_attempts: int, may_look: bool
) -> None:
    look = _look(quiet_s=quiet_s, num_attempts=num_attempts)

    assert look._may_look() is may_look


def test_a_look_that_is_stopped_claims_nothing_more() -> None:
    look = _look(quiet_s=11.0, num_attempts=0)
    look.start()

    look.stop()

    assert not look._may_look()
    assert not look._thread.is_alive()


def test_no_thread_keeps_a_process_that_has_stopped() -> None:
    """One that hangs in a call to a dead server ends with the process."""
    runtime, client = cast(Any, SimpleNamespace()), cast(Any, redis.Redis())
    parts: list[Any] = [
        Heartbeat(runtime),
        CancelListener(runtime),
        Drain(runtime),
        IdleLook(runtime),
    ]

    assert all(part._thread.daemon for part in [*parts, Publisher(client)])
