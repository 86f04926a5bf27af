"""From engine steps to Redis: one thread, one round trip a step for all running jobs.

The engine's thread only hands its outputs over. When Redis is away the events stay in memory and
generation goes on; a finished job never waits for Redis longer than one failed call.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence

import redis
import structlog

from tasks.stream import Append, Code, StreamWriter
from tasks.vital import vital
from workers.inference import metrics
from workers.inference.engine.errors import EngineError
from workers.inference.engine.protocol import FinishReason, TokenOutput
from workers.inference.job_stream import JobStream

log = structlog.get_logger(__name__)

RETRY_INTERVAL_S = 0.5  # between tries while Redis is away
LINGER_S = 60.0  # a finished job's events are retried this long; after it Postgres serves readers


class Publisher:
    """Owns the streams of the running jobs. `on_step` is the engine's sink."""

    def __init__(self, client: redis.Redis) -> None:
        self._writer = StreamWriter(client)
        self._inbox: queue.SimpleQueue[Sequence[TokenOutput] | JobStream | None] = (
            queue.SimpleQueue()
        )
        self._jobs: dict[str, tuple[JobStream, int]] = {}  # and which of its prompts
        self._dirty: dict[JobStream, float] = {}  # with events to send -> when to give up
        self._retry_at = 0.0
        self._refused: dict[JobStream, float] = {}  # by Redis, each for itself -> when to try again
        # A log is begun only while the worker knows by its lease that its jobs are its own: a Redis
        # that lost its data can't tell a stale attempt from the owner. Monotonic; the heartbeat's.
        self.trusted_until = 0.0
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Send what is left, once, and end the thread."""
        self._inbox.put(None)
        self._thread.join(timeout=5)

    def register(self, request_id: str, job: JobStream, prompt: int = 0) -> None:
        """Before the request is submitted, which is for one of the job's prompts."""
        self._jobs[request_id] = job, prompt

    def forget(self, request_id: str) -> None:
        """The handler is done with the request; its events may still be on their way."""
        self._jobs.pop(request_id, None)

    def on_step(self, outputs: Sequence[TokenOutput]) -> None:
        """Called by the engine's thread. Never blocks."""
        self._inbox.put(outputs)

    def flush(self, job: JobStream) -> None:
        """Have a job's pending events sent: its `started`, or its final marker."""
        self._inbox.put(job)

    def running(self) -> list[JobStream]:
        """The jobs registered now."""
        return list(dict.fromkeys(job for job, _ in self._jobs.values()))

    def _run(self) -> None:
        goes_on = True
        with vital("publisher"):
            while goes_on:
                try:
                    goes_on = self._turn()
                except Exception:  # the thread's boundary; the handlers' own deadline ends the jobs
                    log.exception("outputs_lost")

    def _turn(self) -> bool:
        """Send what there is. Whether another turn follows."""
        items, is_last = self._take()
        ended = {job for item in items for job in self._accept(item)}
        try:
            if is_last or time.monotonic() >= self._retry_at:
                self._publish()
        except Exception:  # the thread's boundary: no handler waits for the stream
            log.exception("publish_failed")
        for job in ended:
            job.close()
        return not is_last

    def _take(self) -> tuple[list[Sequence[TokenOutput] | JobStream], bool]:
        """Wait for something to do, then take all there is."""
        items: list[Sequence[TokenOutput] | JobStream] = []
        try:
            item = self._inbox.get(timeout=RETRY_INTERVAL_S if self._dirty else None)
            while item is not None:
                items.append(item)
                item = self._inbox.get_nowait()
        except queue.Empty:
            return items, False
        return items, True

    def _accept(self, item: Sequence[TokenOutput] | JobStream) -> list[JobStream]:
        """Turn outputs into events; returns the jobs whose output is over."""
        deadline = time.monotonic() + LINGER_S
        if isinstance(item, JobStream):
            self._dirty[item] = deadline
            return []
        ended = set()
        for output in item:
            job, prompt = self._jobs.get(output.request_id, (None, 0))
            if job is None or job.is_fenced:
                continue
            try:
                job.add_output(output, prompt)
            except Exception:  # one job's boundary: the others' outputs must not be lost with it
                log.exception("output_lost", job_id=job.job_id.hex)
                job.end(_lost(output))
                ended.add(job)
            self._dirty[job] = deadline
            if output.finish_reason is not None:
                ended.add(job)
        return [job for job in ended if job.is_over]

    def _publish(self) -> None:
        """One round trip; jobs it confirms are clean, the rest is tried again."""
        now = time.monotonic()
        self._dirty = {
            job: until
            for job, until in self._dirty.items()
            if not job.is_fenced and (until > now or not job.finished.is_set())
        }
        is_trusted = now < self.trusted_until
        appends = [
            (job, append)
            for job in self._dirty
            if self._refused.get(job, now) <= now
            and (append := job.pending()) is not None
            and (is_trusted or not append.begins_log)
        ]
        if appends:
            self._send(appends, now)
        self._dirty = {job: until for job, until in self._dirty.items() if job.has_pending}
        self._refused = {job: at for job, at in self._refused.items() if job in self._dirty}

    def _send(self, appends: list[tuple[JobStream, Append]], now: float) -> None:
        try:
            replies = self._writer.append([append for _, append in appends])
        except redis.RedisError as error:
            metrics.PUBLISH_FAILURES.inc()
            log.warning("publish_unavailable", error=type(error).__name__)
            self._retry_at = now + RETRY_INTERVAL_S
            return
        for (job, append), reply in zip(appends, replies, strict=True):
            if reply.code == Code.REFUSED:
                log.warning("publish_refused", job_id=job.job_id.hex)
                self._refused[job] = now + RETRY_INTERVAL_S
            job.confirm(reply, renewed=append.renews)


def _lost(output: TokenOutput) -> TokenOutput:
    """The end of a job that can't go on without what was lost: another attempt produces it."""
    error = EngineError("internal", "The worker failed on this output.", retryable=True)
    return TokenOutput(request_id=output.request_id, finish_reason=FinishReason.ERROR, error=error)
