"""The token stream of a job: a capped log in Redis plus pub/sub as the live wake-up.

A producer (one attempt of one job) opens the stream, then appends; the worker sends the appends
of all its jobs together. A reader subscribes, awaits the acknowledgement, replays after its last
sequence number, then follows. All calls here do exactly one round trip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any
from uuid import UUID

import redis
import redis.asyncio

from tasks import keys
from tasks.events import Event, parse_payload

_LUA = Path(__file__).parent / "lua"
APPEND_SCRIPT = (_LUA / "append.lua").read_text()
OPEN_SCRIPT = (_LUA / "open.lua").read_text()

# After a loss of Redis data readers may have seen events that no store holds any more. Attempt n
# then goes on at n times this number. No attempt has as many events (128 choices of 131,072 tokens
# are 17 million), so that whatever was lost, earlier attempts gave lower numbers only: no number is
# given to two events.
SEQUENCE_JUMP = 100_000_000

# Redis serves nobody else while a script runs: one call appends as many events at most, some ms.
MAX_EVENTS_A_CALL = 256


class Code(IntEnum):
    """What the scripts answer."""

    OK = 0
    LOG_LOST = 1  # open only
    FENCED = -1
    FINAL = -2
    HOLE = -3  # append only
    REFUSED = -4  # by Redis before the script had said anything: a key that holds something else


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer of a script: the code and the last sequence number in the log."""

    code: Code
    last_seq: int


@dataclass(frozen=True, slots=True)
class Append:
    """One append: consecutive events of one job's attempt."""

    job_id: UUID
    attempt: int
    events: Sequence[Event]
    is_final: bool = False
    resets_log: bool = False
    renews: bool = True  # how long the stream is kept; what begins or ends it always does

    @property
    def begins_log(self) -> bool:
        """Whether it may make a log where there is none, so that no older owner is known there."""
        return self.resets_log or self.events[0].seq == 1

    @property
    def keys(self) -> tuple[str, str]:
        """Those that append.lua writes."""
        return keys.stream_meta(self.job_id), keys.stream_log(self.job_id)

    def arguments(self) -> tuple[Any, ...]:
        """The job's share of the arguments of append.lua."""
        numbers = (
            f"{self.attempt} {self.events[0].seq} {len(self.events)}"
            f" {self.is_final:d} {self.resets_log:d} {self._ttl_ms}"
        )
        return (numbers, *(event.payload for event in self.events))

    @property
    def _ttl_ms(self) -> int:
        if self.is_final:
            return keys.STREAM_FINAL_TTL_MS
        return keys.STREAM_RUNNING_TTL_MS if self.renews or self.begins_log else 0


class StreamWriter:
    """The producers' end, one a worker process. Not thread-safe; give each thread its own."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._append_sha: str | None = None
        self._open = client.register_script(OPEN_SCRIPT)

    def open(self, job_id: UUID, attempt: int, checkpoint_seq: int) -> Reply:
        """Take the stream over for an attempt. Raises redis.RedisError."""
        answer = self._open(
            keys=[keys.stream_meta(job_id), keys.stream_log(job_id)],
            args=[attempt, checkpoint_seq, keys.STREAM_RUNNING_TTL_MS],
        )
        return Reply(Code(answer[0]), answer[1])

    def append(self, appends: Sequence[Append]) -> list[Reply]:
        """One round trip for the whole batch. One that Redis refuses holds up no others. Raises
        redis.RedisError if nothing can be appended; safe to repeat as a whole.
        """
        if self._append_sha is None:
            self._append_sha = str(self._client.script_load(APPEND_SCRIPT))
        try:
            return self._append_once(self._append_sha, appends)
        except redis.exceptions.NoScriptError:  # Redis restarted
            self._append_sha = None
            return self.append(appends)

    def _append_once(self, sha: str, appends: Sequence[Append]) -> list[Reply]:
        pipeline = self._client.pipeline(transaction=False)
        for call in _calls(appends):
            names = [name for append in call for name in append.keys]
            arguments = [argument for append in call for argument in append.arguments()]
            pipeline.evalsha(sha, len(names), *names, keys.STREAM_MAX_ENTRIES, *arguments)
        answers = [answer for of_call in pipeline.execute() for answer in of_call]
        replies = [_reply(*answer) for answer in answers]
        if all(reply.code is Code.REFUSED for reply in replies):
            raise redis.ResponseError(answers[0][1].decode())
        return replies

    def read_log(self, job_id: UUID) -> list[Event]:
        """All that the log holds. Raises redis.RedisError."""
        return _entries(self._client.xrange(keys.stream_log(job_id)))


def _calls(appends: Sequence[Append]) -> Iterator[list[Append]]:
    """A log that is begun anew from memory may have very many events."""
    call: list[Append] = []
    num_events = 0
    for append in appends:
        if call and num_events + len(append.events) > MAX_EVENTS_A_CALL:
            yield call
            call, num_events = [], 0
        call.append(append)
        num_events += len(append.events)
    yield call


def _reply(code: int, last_seq: int | bytes) -> Reply:
    """Of a refusal Redis's words stand in the number's place."""
    return Reply(Code(code), last_seq if isinstance(last_seq, int) else 0)


async def drop_log(client: redis.asyncio.Redis, job_id: UUID) -> None:
    """Delete the events of a job that is over, and let its worker's last words bring none back.

    Raises redis errors.
    """
    async with client.pipeline() as pipeline:
        _drop(pipeline, job_id)
        await pipeline.execute()


def drop_logs(client: redis.Redis, job_ids: Sequence[UUID]) -> None:
    """The same of many jobs, in one round trip."""
    with client.pipeline(transaction=False) as pipeline:
        for job_id in job_ids:
            _drop(pipeline, job_id)
        pipeline.execute()


def _drop(pipeline: Any, job_id: UUID) -> None:
    meta = keys.stream_meta(job_id)
    pipeline.hsetnx(meta, "f", 0)  # final: nothing more is taken
    pipeline.pexpire(meta, keys.STREAM_FINAL_TTL_MS)
    pipeline.delete(keys.stream_log(job_id))


async def read_log(
    client: redis.asyncio.Redis, job_id: UUID, after: int, count: int | None = None
) -> list[Event]:
    """Events after a sequence number, at most `count`. Raises redis.RedisError."""
    return _entries(await client.xrange(keys.stream_log(job_id), min=f"({after}-0", count=count))


def _entries(entries: Any) -> list[Event]:
    return [
        parse_payload(int(entry_id.partition(b"-")[0]), fields[b"e"])
        for entry_id, fields in entries
    ]
