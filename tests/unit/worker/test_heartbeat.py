"""What a beat renews, stores and takes back, by what the table of leases and jobs says."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from psycopg import DataError, OperationalError
from structlog.testing import capture_logs

from store import leases
from store.attempts import RunningCheckpoint
from store.leases import BEAT_INTERVAL_S, LEASE_S, HeldJob, Lease
from tasks.ids import uuid7
from tests.support.waiting import wait_until
from tests.unit.worker.test_job_stream import new_stream, output
from workers.inference import heartbeat as beating
from workers.inference.engine.protocol import Phase, Progress
from workers.inference.heartbeat import ABANDON_S, ORPHAN_S, Heartbeat
from workers.inference.runtime import RunningJob, Runtime
from workers.inference.settings import WorkerSettings

NOW = 1_000.0


class _Table:
    """What Postgres has, and what it was told, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.leases: set[UUID] = set()
        self.held: list[HeldJob] = []
        self.said: list[Any] = []
        self.registered: list[Lease] = []
        self.saved: list[list[RunningCheckpoint]] = []
        self.error: Exception | None = None
        for name in ("register", "beat", "held_jobs", "disown", "set_draining", "give_up"):
            monkeypatch.setattr(leases, name, getattr(self, name))
        monkeypatch.setattr(beating, "save_checkpoints", self.save)

    @contextmanager
    def connection(self) -> Iterator[str]:
        if self.error:
            raise self.error
        yield "connection"

    def register(self, _connection: object, lease: Lease) -> None:
        self.leases.add(lease.worker_id)
        self.registered.append(lease)

    def beat(self, _connection: object, worker_id: UUID, *, num_running: int) -> bool:
        self.said.append(("beat", num_running))
        return worker_id in self.leases

    def held_jobs(self, _connection: object, worker_id: UUID) -> list[HeldJob]:
        assert worker_id in self.leases
        return list(self.held)

    def disown(self, _connection: object, worker_id: UUID, job: HeldJob) -> bool:
        assert worker_id in self.leases
        self.said.append(("disown", job.job_id))
        return True

    def set_draining(self, _connection: object, worker_id: UUID) -> None:
        assert worker_id in self.leases
        self.said.append("draining")

    def give_up(self, _connection: object, worker_id: UUID) -> list[UUID]:
        self.leases.discard(worker_id)
        self.said.append("given up")
        return [uuid7()]

    def save(self, _connection: object, checkpoints: Sequence[RunningCheckpoint]) -> None:
        self.saved.append(list(checkpoints))

    @property
    def num_beats(self) -> int:
        return sum(said[0] == "beat" for said in self.said)


class _Engine:
    models: frozenset[str] = frozenset({"b", "a"})
    refused = {"c": "too large"}  # noqa: RUF012
    max_num_seqs = 4

    def __init__(self) -> None:
        self.aborted: list[str] = []
        self.shown = Progress(1, Phase.SERVING, is_idle=True)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def progress(self) -> Progress:
        return self.shown


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> _Table:
    return _Table(monkeypatch)


@pytest.fixture
def runtime(table: _Table) -> Runtime:
    publisher = SimpleNamespace(trusted_until=0.0)
    parts: Any = (_Engine(), table, None, publisher, uuid7())
    return Runtime(WorkerSettings(pool="demo", device="cpu"), *parts)


def _heartbeat(runtime: Runtime) -> Heartbeat:
    """Registered at NOW; its thread is the test's."""
    heartbeat = Heartbeat(runtime)
    heartbeat._register(cast(Any, "connection"), NOW)
    return heartbeat


def _run(runtime: Runtime, table: _Table, *, is_held: bool = True, **held: Any) -> RunningJob:
    """A job that runs here, and that Postgres says this worker holds."""
    job = RunningJob(new_stream(), runtime.worker_id)
    runtime.add(job)
    if is_held:
        fields = {"attempt": 1, "is_cancelled": False} | held
        table.held.append(HeldJob(job_id=job.stream.job_id, **fields))
    return job


def _aborted(runtime: Runtime) -> list[str]:
    return cast(_Engine, runtime.engine).aborted


def _trusted_until(runtime: Runtime) -> float:
    return runtime.publisher.trusted_until


def test_a_lease_says_what_its_worker_is(runtime: Runtime, table: _Table) -> None:
    _heartbeat(runtime)

    [lease] = table.registered
    assert (lease.worker_id, lease.pool, lease.device) == (runtime.worker_id, "demo", "cpu")
    assert (lease.models, lease.refused, lease.slots) == (["a", "b"], {"c": "too large"}, 4)
    assert _trusted_until(runtime) == NOW + LEASE_S
    assert table.said == []


def test_an_idle_worker_beats_now_and_then_and_a_busy_one_at_every_look(
    runtime: Runtime, table: _Table
) -> None:
    heartbeat = _heartbeat(runtime)
    nums = []
    for moment in (0.0, 1.0, BEAT_INTERVAL_S - 0.1, BEAT_INTERVAL_S, BEAT_INTERVAL_S + 1):
        heartbeat._tick(NOW + moment)
        nums.append(table.num_beats)
    job = _run(runtime, table)
    for moment in (BEAT_INTERVAL_S + 1.1, BEAT_INTERVAL_S + 1.2):
        heartbeat._tick(NOW + moment)

    assert nums == [1, 1, 1, 2, 2]
    assert table.said[2:] == [("beat", 1)] * 2
    assert not job.stream.is_fenced
    assert _aborted(runtime) == []


def test_each_beat_renews_the_trust_in_what_is_published(runtime: Runtime, table: _Table) -> None:
    heartbeat = _heartbeat(runtime)

    heartbeat._tick(NOW + 5)

    assert _trusted_until(runtime) == NOW + 5 + LEASE_S


def test_an_engine_that_stands_still_is_not_spoken_for_though_its_output_is_stored(
    runtime: Runtime, table: _Table
) -> None:
    heartbeat = _heartbeat(runtime)
    job = _run(runtime, table)
    cast(_Engine, runtime.engine).shown = Progress(1, Phase.SERVING, is_idle=False)
    heartbeat._tick(NOW + 1)
    job.stream.add_output(output("a", 1))

    heartbeat._tick(NOW + 2)

    assert table.num_beats == 1
    assert _trusted_until(runtime) == NOW + 1 + LEASE_S
    assert [len(saved) for saved in table.saved] == [1]


def test_output_is_stored_once(runtime: Runtime, table: _Table) -> None:
    heartbeat = _heartbeat(runtime)
    job, silent = _run(runtime, table), _run(runtime, table)
    job.stream.add_output(output("a", 1))

    heartbeat._tick(NOW)
    heartbeat._tick(NOW + 1)
    silent.stream.add_output(output("b", 2))
    job.stream.add_output(output("c", 3))
    heartbeat._tick(NOW + 2)

    texts = [[item.checkpoint.text for item in saved] for saved in table.saved]
    assert texts == [["a"], ["ac", "b"]]


def test_output_that_can_not_be_stored_keeps_no_other_from_it(
    runtime: Runtime, table: _Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    heartbeat = _heartbeat(runtime)
    jobs = [_run(runtime, table) for _ in range(3)]
    for job in jobs:
        job.stream.add_output(output("a", 1))
    stuck = jobs[1].stream.job_id

    def save(_connection: object, some: Sequence[RunningCheckpoint]) -> None:
        if stuck in [item.job_id for item in some]:
            raise DataError
        table.saved.append(list(some))

    monkeypatch.setattr(beating, "save_checkpoints", save)
    with capture_logs() as logs:
        heartbeat._tick(NOW)

    saved = [item.job_id for some in table.saved for item in some]
    assert saved == [jobs[0].stream.job_id, jobs[2].stream.job_id]
    assert [job.stream.due_checkpoint() is None for job in jobs] == [True, False, True]
    told = [line for line in logs if line["event"] == "checkpoint_not_stored"]
    assert [line["job_id"] for line in told] == [stuck.hex]


def test_output_that_could_not_be_stored_is_due_again(
    runtime: Runtime, table: _Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    heartbeat = _heartbeat(runtime)
    _run(runtime, table).stream.add_output(output("a", 1))
    with monkeypatch.context() as patch:
        patch.setattr(beating, "save_checkpoints", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            heartbeat._tick(NOW)

    heartbeat._tick(NOW + 1)

    assert table.num_beats == 2  # its failure cost no beat
    assert [len(saved) for saved in table.saved] == [1]


def test_what_the_table_has_given_away_is_dropped_and_what_is_to_end_is_aborted(
    runtime: Runtime, table: _Table
) -> None:
    heartbeat = _heartbeat(runtime)
    mine, cancelled = _run(runtime, table), _run(runtime, table, is_cancelled=True)
    taken, next_attempt = _run(runtime, table, is_held=False), _run(runtime, table, attempt=2)
    concluding = _run(runtime, table, is_held=False)
    concluding.is_concluding = True

    heartbeat._tick(NOW)

    fenced = [job for job in runtime.running() if job.stream.is_fenced]
    assert fenced == [taken, next_attempt]
    assert _aborted(runtime) == [job.request_id for job in (cancelled, taken, next_attempt)]
    assert runtime.running() == [mine, cancelled, taken, next_attempt, concluding]


def test_trust_is_renewed_only_once_lost_jobs_are_dropped(
    runtime: Runtime, table: _Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the log of somebody else's job could be begun anew in between."""
    heartbeat = _heartbeat(runtime)
    job = _run(runtime, table, is_held=False)
    trusted: list[float] = []
    monkeypatch.setattr(runtime.engine, "abort", lambda _: trusted.append(_trusted_until(runtime)))

    heartbeat._tick(NOW + 5)

    assert job.stream.is_fenced
    assert trusted == [NOW + LEASE_S]


def test_a_job_that_nobody_runs_is_left_to_the_reaper_after_its_time(
    runtime: Runtime, table: _Table
) -> None:
    heartbeat = _heartbeat(runtime)
    orphan, shows_up = HeldJob(uuid7(), 1, False), _run(runtime, table)
    runtime.remove(shows_up)
    table.held.append(orphan)

    heartbeat._tick(NOW)
    runtime.add(shows_up)
    heartbeat._tick(NOW + ORPHAN_S)
    early = [said for said in table.said if said[0] == "disown"]
    heartbeat._tick(NOW + ORPHAN_S + 1)

    assert early == []
    assert table.said[-1] == ("disown", orphan.job_id)
    assert not shows_up.stream.is_fenced


def test_an_orphan_that_comes_back_begins_its_time_anew(runtime: Runtime, table: _Table) -> None:
    heartbeat = _heartbeat(runtime)
    _run(runtime, table)
    orphan = HeldJob(uuid7(), 1, False)
    table.held.append(orphan)
    heartbeat._tick(NOW)
    table.held.remove(orphan)
    heartbeat._tick(NOW + ORPHAN_S + 1)
    table.held.append(orphan)

    heartbeat._tick(NOW + ORPHAN_S + 2)

    assert not any(said[0] == "disown" for said in table.said)


@pytest.mark.parametrize("is_draining", [False, True])
def test_a_lost_lease_costs_all_that_ran_under_it_and_is_followed_by_another(
    runtime: Runtime, table: _Table, is_draining: bool
) -> None:
    heartbeat = _heartbeat(runtime)
    job, old = _run(runtime, table), runtime.worker_id
    job.stream.add_output(output("a", 1))
    table.leases.clear()
    if is_draining:
        runtime.draining.set()

    heartbeat._tick(NOW + 5)

    assert job.stream.is_fenced
    assert _aborted(runtime) == [job.request_id]
    assert runtime.worker_id != old
    assert table.leases == {runtime.worker_id}
    assert table.saved == []  # nothing of it counts any more
    assert ("draining" in table.said) is is_draining
    assert _trusted_until(runtime) == NOW + 5 + LEASE_S


def test_time_without_postgres_counts_from_the_last_beat(runtime: Runtime, table: _Table) -> None:
    heartbeat = _heartbeat(runtime)
    job, old = _run(runtime, table), runtime.worker_id
    heartbeat._tick(NOW + 30)

    heartbeat._abandon_if_late(NOW + 30 + ABANDON_S)
    kept = (job.stream.is_fenced, runtime.worker_id)
    heartbeat._abandon_if_late(NOW + 30 + ABANDON_S + 1)

    assert kept == (False, old)
    assert job.stream.is_fenced
    assert runtime.worker_id != old


def test_time_without_postgres_counts_from_a_new_lease(runtime: Runtime, table: _Table) -> None:
    heartbeat = _heartbeat(runtime)
    table.leases.clear()
    heartbeat._tick(NOW + 30)
    job = _run(runtime, table)

    heartbeat._abandon_if_late(NOW + 30 + ABANDON_S)

    assert not job.stream.is_fenced


@pytest.mark.parametrize("error", [OperationalError(), ZeroDivisionError()])
def test_an_outage_ends_no_heartbeat_and_a_long_one_gives_jobs_up(
    runtime: Runtime, table: _Table, error: Exception
) -> None:
    heartbeat = Heartbeat(runtime, tick_s=0.001, abandon_s=0.1)
    job = _run(runtime, table)
    with capture_logs():  # tracebacks take long to print
        heartbeat.start()
        wait_until(lambda: table.num_beats > 1)
        was_fenced = job.stream.is_fenced
        table.error = error
        wait_until(lambda: job.stream.is_fenced)
        num_beats, table.error = table.num_beats, None
        wait_until(lambda: table.num_beats > num_beats)
        heartbeat.stop()

    assert not was_fenced
    assert table.said[-1] == "given up"
    assert table.leases == {table.registered[0].worker_id}  # it ends by itself


def test_the_lease_is_given_up_once_no_beat_is_on_its_way(
    runtime: Runtime, table: _Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A beat that came later would find it gone, and register another."""
    heartbeat = Heartbeat(runtime, tick_s=0.001)
    is_beating, may_go_on = threading.Event(), threading.Event()
    beat = table.beat

    def slow(*arguments: Any, **named: Any) -> bool:
        is_beating.set()
        may_go_on.wait(10)
        return beat(*arguments, **named)

    monkeypatch.setattr(leases, "beat", slow)
    heartbeat.start()
    assert is_beating.wait(10)
    stopping = threading.Thread(target=heartbeat.stop)
    stopping.start()
    wait_until(heartbeat._stop.is_set)
    may_go_on.set()
    stopping.join(timeout=10)

    assert not heartbeat._thread.is_alive()
    assert table.said == [("beat", 0), "given up"]
    assert len(table.registered) == 1


def test_a_stop_without_postgres_is_one(runtime: Runtime, table: _Table) -> None:
    heartbeat = Heartbeat(runtime, tick_s=60)
    began = time.monotonic()
    heartbeat.start()
    table.error = OperationalError()

    heartbeat.stop()

    assert not heartbeat._thread.is_alive()
    assert began + LEASE_S <= _trusted_until(runtime) <= time.monotonic() + LEASE_S


def test_a_worker_that_has_loaded_its_models_waits_for_postgres(
    runtime: Runtime, table: _Table
) -> None:
    heartbeat, first = Heartbeat(runtime, tick_s=0.001), runtime.worker_id
    table.error = OperationalError()
    starting = threading.Thread(target=heartbeat.start)

    with capture_logs() as logs:
        starting.start()
        wait_until(lambda: len(logs) >= 3)
        table.error = None
        starting.join(timeout=10)

    assert [lease.worker_id for lease in table.registered] == [runtime.worker_id]
    assert runtime.worker_id != first, "the row of an earlier try may be there"
    assert heartbeat._thread.is_alive()
    heartbeat.stop()


def test_each_try_for_a_lease_is_a_tick_after_the_one_before(
    runtime: Runtime, table: _Table
) -> None:
    heartbeat = Heartbeat(runtime, tick_s=7.0, abandon_s=5.0)
    pauses: list[float | None] = []

    class _Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout)
            table.error = OperationalError() if len(pauses) < 2 else None
            return len(pauses) > 2  # of the beats there are none

    heartbeat._stop = _Stop()
    table.error = OperationalError()
    with capture_logs():
        heartbeat.start()
    heartbeat._thread.join(timeout=10)

    assert pauses == [7.0] * 3
    assert len(table.registered) == 1


def test_a_worker_does_not_start_without_postgres(runtime: Runtime, table: _Table) -> None:
    heartbeat = Heartbeat(runtime, abandon_s=0)
    table.error = OperationalError()

    with pytest.raises(OperationalError):
        heartbeat.start()

    assert not heartbeat._thread.is_alive()
