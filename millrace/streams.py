"""Reading a job's events over connections that break. Pure: bytes in, events out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from millrace.calls import job_events
from millrace.errors import APIConnectionError
from millrace.retries import backoff
from millrace.types import Event

MAX_FRUITLESS_TRIES = 10  # in a row; each event starts the count anew


class EventSession:
    """A job's events from one number on until `done`, however many connections that takes."""

    def __init__(self, job_id: str, starting_after: int) -> None:
        self._path = job_events(job_id)
        self._last = starting_after
        self._num_fruitless = 0
        self._decoder = _Decoder()
        self.is_done = False

    @property
    def path(self) -> str:
        """Where to read."""
        return self._path

    def headers(self) -> Mapping[str, str]:
        """For the next connection; what the last one left unfinished is forgotten."""
        self._decoder = _Decoder()
        last = {"Last-Event-ID": str(self._last)} if self._last else {}
        return {"Accept": "text/event-stream", **last}

    def feed(self, data: bytes) -> Iterator[Event]:
        """Events completed by these bytes."""
        for event in self._decoder.feed(data):
            if event.seq is not None:
                if event.seq <= self._last and event.type not in ("gap", "done"):
                    continue
                self._last = event.seq
            self._num_fruitless = 0
            self.is_done = self.is_done or event.type == "done"
            yield event

    def delay_before_resuming(self) -> float:
        """The connection ended before `done`. Raises APIConnectionError when it is hopeless."""
        self._num_fruitless += 1
        if self._num_fruitless > MAX_FRUITLESS_TRIES:
            raise APIConnectionError("The event stream broke off again and again.")
        # The first try is at once: most often a server was replaced and another one is there.
        return backoff(self._num_fruitless - 2) if self._num_fruitless > 1 else 0.0


class _Decoder:
    """Server-sent events. Lines end with LF or CRLF, as our server and proxies write them."""

    def __init__(self) -> None:
        self._rest = b""
        self._fields: dict[str, str] = {}

    def feed(self, data: bytes) -> Iterator[Event]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if event := self._take(line.removesuffix(b"\r").decode()):
                yield event

    def _take(self, line: str) -> Event | None:
        if line:
            name, _, value = line.partition(":")
            self._fields[name] = value.removeprefix(" ")  # a comment has an empty name
            return None
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None
        seq = int(fields["id"]) if fields.get("id", "").isdigit() else None
        return Event(fields.get("event", "message"), seq, json.loads(fields["data"]))
