"""Where an attempt goes on: after the larger of the log in Redis and the checkpoint in Postgres.

A job's first attempt begins at event 1. A later one continues the same stream, so that readers see
one text. When the log may have lost events that readers saw, the attempt goes on far beyond them
and says so with a `gap` event that restates the text.
"""

from __future__ import annotations

from itertools import pairwise

import redis
import structlog

from store.attempts import Claimed
from tasks.events import Event, EventType, make_event, text_of, token_ids_of
from tasks.stream import SEQUENCE_JUMP, Code, Reply, StreamWriter
from tasks.token_ids import unpack_token_ids
from workers.inference.job_stream import JobStream

log = structlog.get_logger(__name__)


class StreamTaken(Exception):
    """A newer attempt owns the stream, or it is final: this claim is void."""


def open_stream(writer: StreamWriter, claimed: Claimed) -> JobStream:
    """The stream of a newly claimed attempt. Raises StreamTaken. Redis may be away."""
    try:
        reply = writer.open(claimed.job_id, claimed.attempt, claimed.checkpoint.seq)
        if reply.code in (Code.FENCED, Code.FINAL):
            raise StreamTaken
        events = writer.read_log(claimed.job_id) if reply.last_seq else []
    except redis.RedisError as error:
        log.warning("stream_unavailable", job_id=claimed.job_id.hex, error=type(error).__name__)
        reply = Reply(Code.OK if claimed.attempt == 1 else Code.LOG_LOST, 0)
        events = []
    return _resume(claimed, reply, events)


def _resume(claimed: Claimed, reply: Reply, events: list[Event]) -> JobStream:
    checkpoint = claimed.checkpoint
    is_longer = _is_unbroken(events) and reply.last_seq > checkpoint.seq
    newer = [event for event in events if event.seq > checkpoint.seq]
    # Tokens the checkpoint lacks; a gap in between would hide some.
    is_usable = is_longer and not any(event.type == EventType.GAP for event in newer)
    token_ids = unpack_token_ids(checkpoint.token_ids)
    text = checkpoint.text
    if is_usable:
        token_ids += token_ids_of(newer)
        text += text_of(newer)
    if reply.code == Code.OK and (is_usable or reply.last_seq == checkpoint.seq):
        return JobStream(claimed, history=events, token_ids=token_ids, text=text)
    return _beyond(claimed, max(reply.last_seq, checkpoint.seq), token_ids, text)


def _beyond(claimed: Claimed, last_seq: int, token_ids: list[int], text: str) -> JobStream:
    """Go on where no reader can have been."""
    seq = last_seq + SEQUENCE_JUMP
    gap = make_event(seq, EventType.GAP, **{"from": 1, "to": seq, "text": text})
    job = JobStream(claimed, history=[gap], token_ids=token_ids, text=text)
    job.must_reset_log()
    return job


def _is_unbroken(events: list[Event]) -> bool:
    return all(later.seq == earlier.seq + 1 for earlier, later in pairwise(events))
