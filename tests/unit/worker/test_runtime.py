"""What a worker knows of its own attempts, without any connection."""

from __future__ import annotations

import threading

import pytest
import redis

from store.pools import sync_pool
from tasks.ids import uuid7
from tests.unit.worker.test_job_stream import new_stream
from workers.inference.drain import Drain
from workers.inference.engine.stub import StubEngine
from workers.inference.publisher import Publisher
from workers.inference.runtime import RunningJob, Runtime
from workers.inference.settings import WorkerSettings

NOWHERE = "127.0.0.1:1"


@pytest.fixture
def runtime() -> Runtime:
    """Its connections are never opened."""
    pool = sync_pool(f"postgresql://{NOWHERE}/none", application_name="test", max_size=1)
    streams = redis.Redis.from_url(f"redis://{NOWHERE}/0")
    return Runtime(
        WorkerSettings(drain_s=0), StubEngine(), pool, streams, Publisher(streams), uuid7()
    )


def test_attempts_count_until_they_end(runtime: Runtime) -> None:
    may_claim = [runtime.begin_attempt(), runtime.begin_attempt()]
    runtime.end_attempt()

    assert may_claim == [True, True]
    assert runtime.num_attempts == 1


def test_two_jobs_more_than_slots_are_held(runtime: Runtime) -> None:
    """They wait at the engine, so that no slot idles."""
    assert runtime.max_running == runtime.engine.max_num_seqs + 2


def test_worker_that_stops_begins_no_attempt(runtime: Runtime) -> None:
    runtime.draining.set()

    assert not runtime.begin_attempt()
    assert runtime.num_attempts == 0


def test_job_is_found_by_its_id_and_by_its_thread_until_it_is_removed(runtime: Runtime) -> None:
    job = RunningJob(new_stream(), runtime.worker_id)

    runtime.add(job)
    found = (runtime.find(job.stream.job_id), runtime.of_thread(threading.get_ident()))
    runtime.remove(job)

    assert found == (job, job)
    assert runtime.find(job.stream.job_id) is None
    assert runtime.of_thread(threading.get_ident()) is None
    assert runtime.running() == []


def test_end_of_a_stale_attempt_leaves_the_next_one_of_its_job(runtime: Runtime) -> None:
    stale = RunningJob(new_stream(), uuid7())
    successor = RunningJob(stale.stream, runtime.worker_id)
    runtime.add(stale)
    runtime.add(successor)

    runtime.remove(stale)

    assert runtime.running() == [successor]


def test_lost_lease_fences_every_job_and_frees_its_handler(runtime: Runtime) -> None:
    jobs = [RunningJob(new_stream(), runtime.worker_id) for _ in range(2)]
    for job in jobs:
        runtime.add(job)

    runtime.lose_all()

    assert all(job.stream.is_fenced and job.stream.finished.is_set() for job in jobs)


def test_drain_without_postgres_ends_all_the_same(runtime: Runtime) -> None:
    """The pool is closed, as it is unreachable for a worker in an outage."""
    job = RunningJob(new_stream(), runtime.worker_id)
    runtime.begin_attempt()
    runtime.add(job)
    drain = Drain(runtime, end_s=0.0)

    drain.begin()
    drain.begin()
    drain.wait()

    assert drain.has_begun
    assert job.stream.is_fenced


def test_whoever_stops_a_worker_waits_longer_than_its_drain() -> None:
    assert WorkerSettings(drain_s=120).stop_grace_s == 130
