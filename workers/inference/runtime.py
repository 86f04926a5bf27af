"""What an inference worker process is made of, built once by bootstrap.py."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from uuid import UUID

import redis

from store.pools import SyncPool
from workers.inference.engine.protocol import Engine
from workers.inference.job_stream import JobStream
from workers.inference.publisher import Publisher
from workers.inference.settings import WorkerSettings


@dataclass(slots=True)
class Runtime:
    """Shared by the handler threads, the heartbeat and the publisher."""

    settings: WorkerSettings
    engine: Engine
    pool: SyncPool
    streams: redis.Redis
    publisher: Publisher
    worker_id: UUID  # replaced when a lease is lost
    draining: threading.Event = field(default_factory=threading.Event)
    has_lost_engine: bool = False  # it failed too often, and serves no more
    last_ticket_at: float = 0.0  # monotonic; the idle look keeps away while tickets come
    _running: dict[UUID, RunningJob] = field(default_factory=dict)
    _by_thread: dict[int, RunningJob] = field(default_factory=dict)
    _num_attempts: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)  # guards the line above

    @property
    def max_running(self) -> int:
        """Jobs held at once: the engine's slots, and two that wait so that no slot idles."""
        return self.engine.max_num_seqs + 2

    @property
    def num_attempts(self) -> int:
        """Attempts from before their claim to their end: what a stop waits for."""
        with self._lock:
            return self._num_attempts

    def begin_attempt(self) -> bool:
        """Before every claim. False: the worker is stopping, or has no engine any more, and claims
        nothing more.

        A drain that begins now either sees the attempt or keeps it from claiming.
        """
        with self._lock:
            if self.draining.is_set() or self.has_lost_engine:
                return False
            self._num_attempts += 1
            return True

    def end_attempt(self) -> None:
        """After a claim that found nothing, or after the attempt's last write."""
        with self._lock:
            self._num_attempts -= 1

    def add(self, job: RunningJob) -> None:
        """From now on the heartbeat, cancellations and drains see the job."""
        self._running[job.stream.job_id] = job
        self._by_thread[threading.get_ident()] = job

    def remove(self, job: RunningJob) -> None:
        """The job is committed, given back or lost."""
        # The job's next attempt may run here already, beside one that lost its lease.
        if self._running.get(job.stream.job_id) is job:
            del self._running[job.stream.job_id]
        self._by_thread.pop(threading.get_ident(), None)

    def running(self) -> list[RunningJob]:
        """The jobs held now."""
        return list(self._running.values())

    def find(self, job_id: UUID) -> RunningJob | None:
        """A job held now."""
        return self._running.get(job_id)

    def of_thread(self, ident: int) -> RunningJob | None:
        """The job a handler thread is busy with."""
        return self._by_thread.get(ident)

    def abort(self, job: RunningJob) -> None:
        """Have the engine end a job's requests; its handler then reads in Postgres why."""
        job.is_aborted = True
        for request_id in job.request_ids:
            self.engine.abort(request_id)

    def lose_all(self) -> None:
        """The lease is gone: nothing that runs here counts any more."""
        for job in self.running():
            job.stream.fence()
            self.abort(job)


@dataclass(slots=True, eq=False)
class RunningJob:
    """A claimed job between claim and commit."""

    stream: JobStream
    worker_id: UUID  # the lease it was claimed under
    is_aborted: bool = False  # a request that is submitted now must be aborted, too
    is_concluding: bool = False  # its end is being committed; the table may say so already

    @property
    def request_id(self) -> str:
        """The engine's name for it: a new attempt is a new request."""
        return f"{self.stream.job_id.hex}.{self.stream.claimed.attempt}"

    @property
    def request_ids(self) -> list[str]:
        """One for each prompt."""
        others = range(1, len(self.stream.prompts))
        return [self.request_id, *(f"{self.request_id}.{number}" for number in others)]
