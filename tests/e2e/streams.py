"""A plain SSE reader for tests: no client library of ours, so that the wire itself is tested."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Reader:
    """Follows one job's events, over as many connections as it takes.

    `texts` (one a choice) and `seqs` are what a client has after applying each event in turn.
    """

    http: httpx.Client
    job_id: str
    last_seq: int = 0
    texts: dict[int, str] = field(default_factory=dict)
    seqs: list[int] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    job: dict[str, Any] | None = None  # of the terminal event
    num_connections: int = 0

    @property
    def text(self) -> str:
        """Of the first choice."""
        return self.texts.get(0, "")

    def read(self, *, drop_after_s: float | None = None) -> None:
        """One connection: until the end, or until it is dropped."""
        self.num_connections += 1
        headers = {"Last-Event-ID": str(self.last_seq)} if self.last_seq else {}
        drop_at = time.monotonic() + drop_after_s if drop_after_s is not None else None
        with self.http.stream(
            "GET", f"/v1/jobs/{self.job_id}/events", headers=headers, timeout=60
        ) as response:
            response.raise_for_status()
            for seq, type_, data in _events(response):
                self._apply(seq, type_, data)
                if self.job is not None or (drop_at is not None and time.monotonic() > drop_at):
                    return

    def read_to_end(self, *, timeout_s: float = 60.0, drop_after_s: float | None = None) -> None:
        """As many connections as it takes; connection errors count as drops."""
        deadline = time.monotonic() + timeout_s
        while self.job is None:
            assert time.monotonic() < deadline, f"{self.job_id} did not end within {timeout_s:g} s"
            try:
                self.read(drop_after_s=drop_after_s)
            except httpx.TransportError:
                time.sleep(0.02)

    def _apply(self, seq: int | None, type_: str, data: dict[str, Any]) -> None:
        if seq is not None:
            self.last_seq = seq
            self.seqs.append(seq)
        match type_:
            case "started":
                self.attempts.append(data["attempt"])
            case "token":
                self.texts[data["index"]] = self.texts.get(data["index"], "") + data["text"]
            case "gap":
                self.texts = dict(enumerate(data.get("texts") or [data["text"]]))
            case "done":
                self.job = data["job"]


def read_beside(reader: Reader, *, timeout_s: float = 60.0) -> Future[None]:
    """Reads to the end on a thread of its own. What goes wrong there, its result raises: in the
    test that asks for it, and in no later one.
    """
    thread = ThreadPoolExecutor(max_workers=1)
    reading = thread.submit(reader.read_to_end, timeout_s=timeout_s)
    thread.shutdown(wait=False)
    return reading


def _events(response: httpx.Response) -> Iterator[tuple[int | None, str, dict[str, Any]]]:
    """(id, event, data) of each block, as the SSE specification parses them."""
    seq, type_, data = None, "message", ""
    for line in response.iter_lines():
        if not line:
            if data:
                yield seq, type_, json.loads(data)
            seq, type_, data = None, "message", ""
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "id":
                seq = int(value)
            case "event":
                type_ = value
            case "data":
                data += value
