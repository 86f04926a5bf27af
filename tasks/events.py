"""Native events of a job: what the log holds, and its three encodings.

`started {attempt, model}`, `token {index, text, token_ids}`, `gap {from, to, text}`, and a final
marker `done {}`: readers replace its data by the job object, whose truth is Postgres. A sequence
number is never given to two different events.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, NamedTuple

import orjson


class EventType(StrEnum):
    """Native event names. Stored and sent."""

    QUEUED = "queued"  # where the job waits; has no sequence number and is not replayed
    STARTED = "started"  # an attempt took the job
    TOKEN = "token"  # what one engine step produced
    GAP = "gap"  # events from..to are not to be had; `text` is the whole text up to `to`
    DONE = "done"  # the only terminal event


class Event(NamedTuple):
    """One native event. `data` is JSON."""

    seq: int
    type: str
    data: bytes

    @property
    def payload(self) -> bytes:
        """As the log holds it: `<type> <json>`."""
        return b"%b %b" % (self.type.encode(), self.data)

    def fields(self) -> dict[str, Any]:
        """The data, parsed."""
        fields: dict[str, Any] = orjson.loads(self.data)
        return fields


def make_event(seq: int, type_: EventType, **fields: Any) -> Event:
    """An event from its fields."""
    return Event(seq, type_.value, orjson.dumps(fields))


def parse_payload(seq: int, payload: bytes) -> Event:
    """An event from a log entry."""
    type_, _, data = payload.partition(b" ")
    return Event(seq, type_.decode(), data)


def parse_message(message: bytes) -> Event:
    """An event from a pub/sub message: `<seq> <type> <json>`."""
    seq, _, payload = message.partition(b" ")
    return parse_payload(int(seq), payload)


def compress_event_log(events: Iterable[Event]) -> bytes:
    """What Postgres keeps: zlib over one `<seq> <type> <json>` a line."""
    return zlib.compress(b"\n".join(b"%d %b" % (event.seq, event.payload) for event in events), 6)


def decompress_event_log(blob: bytes) -> list[Event]:
    """The events of a stored log."""
    text = zlib.decompress(blob)
    return [parse_message(line) for line in text.split(b"\n")] if text else []


def text_of(events: Iterable[Event]) -> str:
    """The text the events add up to. A gap restates all text before it."""
    text = ""
    for event in events:
        if event.type == EventType.TOKEN:
            text += event.fields()["text"]
        elif event.type == EventType.GAP:
            text = event.fields()["text"]
    return text


def token_ids_of(events: Iterable[Event]) -> list[int]:
    """The token ids the events carry since the last gap, which restates text without its ids."""
    ids: list[int] = []
    for event in events:
        if event.type == EventType.TOKEN:
            ids += event.fields()["token_ids"]
        elif event.type == EventType.GAP:
            ids = []
    return ids
