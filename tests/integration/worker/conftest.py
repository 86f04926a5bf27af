"""An inference worker inside the test process: real Postgres and Redis, stub engine, no Celery."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from uuid import UUID

import pytest
import redis

from cli.stack.database import DatabaseUrls
from store.attempts import Claimed
from store.claiming import claim_ticket
from store.pools import sync_pool
from tasks.events import Event
from tasks.ids import uuid7
from tasks.stream import StreamWriter
from tests.support.jobs import Jobs
from tests.support.services import Services
from workers.inference import metrics
from workers.inference.drain import Drain
from workers.inference.engine.config import StubConfig
from workers.inference.engine.stub import StubEngine
from workers.inference.heartbeat import ORPHAN_S, Heartbeat
from workers.inference.publisher import Publisher
from workers.inference.run_job import run_job
from workers.inference.runtime import Runtime
from workers.inference.settings import WorkerSettings


@dataclass
class InProcessWorker:
    """One worker's parts, started; `run` is what a ticket does."""

    runtime: Runtime
    heartbeat: Heartbeat
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def engine(self) -> StubEngine:
        assert isinstance(self.runtime.engine, StubEngine)
        return self.runtime.engine

    def claim(self, job_id: UUID) -> Claimed | None:
        with self.runtime.pool.connection() as connection:
            return claim_ticket(connection, self.runtime.worker_id, job_id)

    def run(self, job_id: UUID) -> None:
        """Claim and run to the end, on this thread."""
        claimed = self.claim(job_id)
        assert claimed is not None
        self.run_claimed(claimed)

    def run_claimed(self, claimed: Claimed) -> None:
        run_job(self.runtime, self.writer(), claimed, self.runtime.worker_id)

    def begin(self, job_id: UUID) -> threading.Thread:
        """Claim and run on a thread of its own."""
        assert self.runtime.begin_attempt()
        claimed = self.claim(job_id)
        assert claimed is not None
        thread = threading.Thread(target=self._attempt, args=(claimed,))
        self.threads.append(thread)
        thread.start()
        return thread

    def _attempt(self, claimed: Claimed) -> None:
        try:
            self.run_claimed(claimed)
        finally:
            self.runtime.end_attempt()

    def drain(self) -> None:
        """As at a stop, until nothing runs here any more."""
        Drain(self.runtime).wait()

    def writer(self) -> StreamWriter:
        return StreamWriter(self.runtime.streams)

    def log(self, job_id: UUID) -> list[Event]:
        return self.writer().read_log(job_id)

    def close(self) -> None:
        self.runtime.engine.shutdown()
        for thread in self.threads:
            thread.join(timeout=20)
        self.heartbeat.stop()
        self.runtime.publisher.stop()
        self.runtime.streams.close()
        self.runtime.pool.close()


def num_attempts() -> Counter[str]:
    """How many ended in which way, in this process."""
    [metric] = metrics.ATTEMPTS.collect()
    counts = Counter[str]()
    for sample in metric.samples:
        if sample.name.endswith("_total"):
            counts[sample.labels["outcome"]] += int(sample.value)
    return counts


@pytest.fixture
def jobs(database: DatabaseUrls) -> Jobs:
    return Jobs(database)


MakeWorker = Callable[..., InProcessWorker]


@pytest.fixture
def make_worker(services: Services, database: DatabaseUrls) -> Iterator[MakeWorker]:
    """Builds workers; arguments are those of StubConfig."""
    made: list[InProcessWorker] = []

    def make(*, orphan_s: float = ORPHAN_S, **stub: object) -> InProcessWorker:
        pool = sync_pool(database.worker, application_name="test-worker", max_size=8)
        pool.open(wait=True)
        streams = redis.Redis.from_url(
            services.redis_url, socket_timeout=1, socket_connect_timeout=1
        )
        engine = StubEngine(StubConfig(**stub))  # type: ignore[arg-type]
        publisher = Publisher(streams)
        engine.start(publisher.on_step)
        runtime = Runtime(WorkerSettings(drain_s=0), engine, pool, streams, publisher, uuid7())
        publisher.start()
        heartbeat = Heartbeat(runtime, orphan_s=orphan_s)
        heartbeat.start()
        made.append(InProcessWorker(runtime, heartbeat))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


@pytest.fixture
def worker(make_worker: MakeWorker) -> InProcessWorker:
    return make_worker()
