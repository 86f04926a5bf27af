"""Native events of a job: what the log holds, and its three encodings.

`started {attempt, model}`, `prompt {index, start, total, token_ids, logprobs}`, `token {index,
text, token_ids, logprobs?}`, `gap {from, to, text, texts?}`, and a final marker `done {}`: readers
replace its data by the job object, whose truth is Postgres. A sequence number is never given to two
different events.

`logprobs` is there where the job asks for them: for each of `token_ids` one `[logprob, [[token id,
logprob], ...]]`. A gap restates text alone, that of choice 0 in `text` and, of a job with several
choices, all in `texts`: log-probabilities from before it are lost to the reader.

`prompt` comes where the job asks for those of its prompts, before any token of their choices: of
the tokens from number `start` on, of `total`, of the prompt whose first choice is `index`. The
first token of a prompt has the log-probability null. After a gap tokens may be told again.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import orjson


class EventType(StrEnum):
    """Native event names. Stored and sent."""

    QUEUED = "queued"  # where the job waits; has no sequence number and is not replayed
    STARTED = "started"  # an attempt took the job
    TOKEN = "token"  # what one engine step produced of one choice
    PROMPT = "prompt"  # how likely tokens of a prompt were
    GAP = "gap"  # events from..to are not to be had; restates the whole text up to `to`
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


def make_gap(seq: int, texts: Sequence[str]) -> Event:
    """What stands for all events up to `seq`: each choice's text so far."""
    several = {"texts": list(texts)} if len(texts) > 1 else {}
    return make_event(seq, EventType.GAP, **{"from": 1, "to": seq, "text": texts[0]}, **several)


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


class EventLogReader:
    """Takes a stored log apart bit by bit, however it is cut. Feed it, `take` until nothing comes;
    behind the last bit `end`.
    """

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj()
        self._compressed = b""
        self._begun = b""  # an event that goes on

    def feed(self, data: bytes) -> None:
        """More of the log."""
        self._compressed += data

    def take(self, max_bytes: int) -> list[Event] | None:
        """Events of the next so many bytes of text; None if more is to be fed first."""
        if not self._compressed:
            return None
        text = self._zlib.decompress(self._compressed, max_bytes)
        self._compressed = self._zlib.unconsumed_tail
        *lines, self._begun = (self._begun + text).split(b"\n")
        return [parse_message(line) for line in lines]

    def end(self) -> list[Event]:
        """What is left, the last event. May be asked again. zlib keeps nothing back by then: the
        checksum behind the text has been taken.
        """
        return [parse_message(self._begun)] if self._begun else []


class TextsSoFar:
    """The text that events add up to, for each choice. A gap restates all text before it."""

    def __init__(self, num_choices: int) -> None:
        self._parts: list[list[str]] = [[] for _ in range(num_choices)]

    def add(self, events: Iterable[Event]) -> None:
        """What follows."""
        for event in events:
            if event.type == EventType.TOKEN:
                fields = event.fields()
                self._parts[fields["index"]].append(fields["text"])
            elif event.type == EventType.GAP:
                self._parts = _restated(event.fields(), len(self._parts))

    @property
    def texts(self) -> list[str]:
        """One a choice."""
        return ["".join(parts) for parts in self._parts]


def texts_of(events: Iterable[Event], num_choices: int = 1) -> list[str]:
    """The text the events add up to, for each choice."""
    so_far = TextsSoFar(num_choices)
    so_far.add(events)
    return so_far.texts


def token_ids_of(events: Iterable[Event], num_choices: int = 1) -> list[list[int]]:
    """Each choice's token ids since the last gap, which restates text without its ids."""
    return _since_gap(events, "token_ids", num_choices)


def logprobs_of(events: Iterable[Event], num_choices: int = 1) -> list[list[Any]]:
    """Each choice's log-probabilities since the last gap; none where nobody asked for them."""
    return _since_gap(events, "logprobs", num_choices)


def prompt_logprobs_of(events: Iterable[Event]) -> dict[int, list[Any]]:
    """The log-probabilities of each prompt's tokens since the last gap, by its first choice."""
    found: dict[int, list[Any]] = {}
    for event in events:
        if event.type == EventType.PROMPT:
            fields = event.fields()
            found.setdefault(fields["index"], []).extend(fields["logprobs"])
        elif event.type == EventType.GAP:
            found = {}
    return found


def _restated(gap: dict[str, Any], num_choices: int) -> list[list[str]]:
    texts = gap.get("texts") or [gap["text"]]
    return [[text] for text in texts] + [[] for _ in range(num_choices - len(texts))]


def _since_gap(events: Iterable[Event], name: str, num_choices: int) -> list[list[Any]]:
    """What the token events hold under a name, one entry a token."""
    found: list[list[Any]] = [[] for _ in range(num_choices)]
    for event in events:
        if event.type == EventType.TOKEN:
            fields = event.fields()
            found[fields["index"]] += fields.get(name, ())
        elif event.type == EventType.GAP:
            found = [[] for _ in range(num_choices)]
    return found
