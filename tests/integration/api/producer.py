"""Stands for an inference worker: claims a job and writes its events through the worker's own code.

What a worker computes is made up here; what it writes, and how, is not.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from types import TracebackType
from typing import Self
from uuid import UUID, uuid4

import redis

from store.attempts import Claimed, Finish, finish
from store.claiming import claim_any
from store.leases import Lease, register
from store.pools import DictConnection, connect
from tasks.events import Event, EventType, compress_event_log, make_event, texts_of, token_ids_of
from tasks.ids import format_job_id
from tasks.jobs import COMPLETED, Ending
from tasks.stream import Append, Reply, StreamWriter


class RunningJob:
    """One attempt: its events so far, and what Redis was told of them."""

    def __init__(self, writer: StreamWriter, claimed: Claimed) -> None:
        self.claimed = claimed
        self.events: list[Event] = []
        self._writer = writer
        writer.open(claimed.job_id, claimed.attempt, 0)
        self.add(EventType.STARTED, attempt=claimed.attempt, model=claimed.model)

    @property
    def job_id(self) -> UUID:
        return self.claimed.job_id

    @property
    def id(self) -> str:
        """As clients know it."""
        return format_job_id(self.job_id)

    @property
    def text(self) -> str:
        return self.texts[0]

    @property
    def texts(self) -> list[str]:
        return texts_of(self.events, self.claimed.num_choices)

    def add(self, type_: EventType, **fields: object) -> Event:
        seq = self.events[-1].seq + 1 if self.events else 1
        self.events.append(make_event(seq, type_, **fields))
        return self.events[-1]

    def add_token(self, text: str, *, index: int = 0) -> Event:
        return self.add(EventType.TOKEN, index=index, text=text, token_ids=[len(self.events)])

    def publish(self, *, is_final: bool = False, count: int = 1) -> Reply:
        """The last `count` events."""
        return self._append(self.events[-count:], is_final=is_final, resets_log=False)

    def publish_all_again(self) -> Reply:
        """As after Redis lost everything."""
        is_final = self.events[-1].type == EventType.DONE
        return self._append(self.events, is_final=is_final, resets_log=True)

    def _append(self, events: Sequence[Event], *, is_final: bool, resets_log: bool) -> Reply:
        append = Append(
            self.job_id, self.claimed.attempt, events, is_final=is_final, resets_log=resets_log
        )
        return self._writer.append([append])[0]

    def say(self, text: str, *, index: int = 0) -> None:
        """One token of a choice, published at once."""
        self.add_token(text, index=index)
        self.publish()


class Producer:
    """A worker with a lease."""

    def __init__(self, database_url: str, redis_url: str) -> None:
        self.worker_id = uuid4()
        self._connection: DictConnection = connect(database_url, application_name="producer")
        self.redis = redis.Redis.from_url(redis_url)
        self.writer = StreamWriter(self.redis)

    def __enter__(self) -> Self:
        register(
            self._connection,
            Lease(
                worker_id=self.worker_id,
                hostname=socket.gethostname(),
                pid=1,
                pool="default",
                device="cpu",
                models=["tiny"],
                slots=8,
            ),
        )
        self._connection.execute("UPDATE worker_leases SET expires_at = now() + interval '1 h'")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.close()
        self.redis.close()

    def claim(self) -> RunningJob:
        """Take the best queued job and publish that it started."""
        claimed = claim_any(self._connection, self.worker_id, "default")
        assert claimed is not None, "no job is queued"
        job = RunningJob(self.writer, claimed)
        job.publish()
        return job

    def commit(self, job: RunningJob, ending: Ending = COMPLETED, *, keep_log: bool = True) -> None:
        """End the job in Postgres; readers are not told."""
        marker = make_event(job.events[-1].seq + 1, EventType.DONE)
        num_tokens = sum(map(len, token_ids_of(job.events, job.claimed.num_choices)))
        committed = finish(
            self._connection,
            Finish(
                job_id=job.job_id,
                attempt=job.claimed.attempt,
                worker_id=self.worker_id,
                ending=ending,
                attempt_outcome="ok",
                cached_tokens=0,
                output_tokens=num_tokens,
                attempt_tokens=num_tokens,
                cost_micros=7,
                output=[
                    {"index": index, "text": text, "finish_reason": "stop"}
                    for index, text in enumerate(job.texts)
                ],
                last_seq=marker.seq,
                event_log=compress_event_log([*job.events, marker]) if keep_log else None,
            ),
        )
        assert committed

    def finish(self, job: RunningJob, ending: Ending = COMPLETED) -> None:
        """End the job, then tell readers."""
        self.commit(job, ending)
        job.add(EventType.DONE)
        job.publish(is_final=True)
