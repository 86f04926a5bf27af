"""Where an attempt goes on: after the larger of the log in Redis and the checkpoint in Postgres.

A job's first attempt begins at event 1. A later one continues the same stream, so that readers see
one text. When the log may have lost events that readers saw, the attempt goes on far beyond them
and says so with a `gap` event that restates the text.
"""

from __future__ import annotations

import redis
import structlog

from store.attempts import Claimed
from tasks.events import (
    Event,
    EventType,
    logprobs_of,
    make_gap,
    prompt_logprobs_of,
    texts_of,
    token_ids_of,
)
from tasks.stream import SEQUENCE_JUMP, Code, Reply, StreamWriter
from workers.inference.choices import Choice, from_checkpoint
from workers.inference.job_stream import JobStream
from workers.inference.prompts import prompts_of

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
    newer = [event for event in events if event.seq > checkpoint.seq]
    choices = from_checkpoint(checkpoint, claimed.num_choices)
    # Tokens the checkpoint lacks. One missing in between, or a gap's, would make other text of it.
    is_usable = _joins(checkpoint.seq, newer)
    if is_usable:
        _go_on(choices, newer)
    if reply.code == Code.OK and is_usable and _is_whole(events, reply.last_seq):
        for choice, logprobs in zip(choices, logprobs_of(events, len(choices)), strict=True):
            choice.logprobs = logprobs
        prompts, known = prompts_of(claimed), prompt_logprobs_of(events)
        for prompt in prompts:
            prompt.logprobs = known.get(prompt.first_choice, [])
        return JobStream(claimed, history=events, choices=choices, prompts=prompts)
    return _beyond(claimed, choices)


def _go_on(choices: list[Choice], events: list[Event]) -> None:
    """Add what events say that come after a checkpoint."""
    token_ids, texts = token_ids_of(events, len(choices)), texts_of(events, len(choices))
    for choice in choices:
        choice.add(token_ids[choice.index], texts[choice.index])


def _beyond(claimed: Claimed, choices: list[Choice]) -> JobStream:
    """Go on where no reader can have been."""
    seq = claimed.attempt * SEQUENCE_JUMP
    gap = make_gap(seq, [choice.text for choice in choices])
    job = JobStream(claimed, history=[gap], choices=choices)
    job.must_reset_log()
    return job


def _joins(seq: int, newer: list[Event]) -> bool:
    """Whether the events follow number `seq` without anything missing."""
    numbers = [event.seq for event in newer]
    has_gap = any(event.type == EventType.GAP for event in newer)
    return not has_gap and numbers == list(range(seq + 1, seq + 1 + len(newer)))


def _is_whole(events: list[Event], last_seq: int) -> bool:
    """Whether the events are all of a log up to `last_seq`: from number 1 on, or from a gap on."""
    if not events:
        return last_seq == 0
    begins = events[0].seq == 1 or events[0].type == EventType.GAP
    numbers = [event.seq for event in events]
    return begins and numbers == list(range(numbers[0], last_seq + 1))
