"""Reads event streams as clients do, through our own client's decoder."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from millrace.streams import EventSession
from millrace.types import Event

BODY = {"model": "tiny", "prompt": "hello", "max_tokens": 100}
DEADLINE_S = 20.0


@dataclass
class Seen:
    """What a client made of the events, by the rules of the wire format."""

    events: list[Event] = field(default_factory=list)
    text: str = ""

    def take(self, event: Event) -> None:
        self.events.append(event)
        if event.type == "gap":
            self.text = event.data["text"]
        self.text += event.text

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.events if event.type != "queued"]

    @property
    def numbers(self) -> list[int]:
        return [event.seq for event in self.events if event.seq is not None]

    @property
    def done(self) -> dict[str, Any]:
        [event] = [event for event in self.events if event.type == "done"]
        job: dict[str, Any] = event.data["job"]
        return job


async def create_job(http: httpx.AsyncClient) -> str:
    """The id of a job that waits in the queue."""
    answer = await http.post("/v1/jobs", json=BODY)
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


@asynccontextmanager
async def reading(http: httpx.AsyncClient, job_id: str, after: int = 0) -> AsyncIterator[Seen]:
    """Reads in the background; leaving the block waits for the stream's end."""
    seen = Seen()

    async def read() -> None:
        async for event in _events(http, EventSession(job_id, after)):
            seen.take(event)

    task = asyncio.create_task(read())
    try:
        yield seen
        await asyncio.wait_for(task, DEADLINE_S)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _events(http: httpx.AsyncClient, session: EventSession) -> AsyncIterator[Event]:
    async with http.stream("GET", session.path, headers=session.headers()) as answer:
        assert answer.status_code == 200
        async for data in answer.aiter_raw():
            for event in session.feed(data):
                yield event


async def drop_and_resume(http: httpx.AsyncClient, job_id: str, seed: int) -> Seen:
    """Leaves after 20 to 400 ms, comes back at once by Last-Event-ID. Drops nothing by itself.

    It is more patient after each session that brought nothing: a busy machine may take longer.
    """
    rng = random.Random(seed)
    seen = Seen()
    last, patience = 0, 1.0
    while "done" not in seen.types:
        num_seen = len(seen.events)
        try:
            async with asyncio.timeout(patience * rng.uniform(0.02, 0.4)):
                session = EventSession(job_id, last)
                async for event in _events(http, session):
                    seen.take(event)
                    last = event.seq or last
        except TimeoutError:
            patience = patience if len(seen.events) > num_seen else 2 * patience
    return seen
