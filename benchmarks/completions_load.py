"""A closed loop of streaming clients on `POST /v1/completions`, of any server that speaks it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from benchmarks.http_client import Connection
from benchmarks.workload import CONCURRENCY, Job, w_mix


@dataclass(slots=True)
class Load:
    """What the clients saw while the load was steady."""

    seconds: float
    num_tokens: int = 0
    first_token_ms: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds


class CompletionsClient:
    """32 clients in one event loop, each with one W-mix request at a time."""

    def __init__(self, url: str, headers: Mapping[str, str], *, model: str) -> None:
        self._url = url
        self._headers = dict(headers)
        self._model = model

    def load(self, *, seed: int, ramp_s: float, seconds: float) -> Load:
        """Counts from `ramp_s` on. Raises RuntimeError for a request that gets fewer tokens."""
        return asyncio.run(self._load(seed, ramp_s, seconds))

    async def _load(self, seed: int, ramp_s: float, seconds: float) -> Load:
        jobs, load = w_mix(seed), Load(seconds)
        start = time.monotonic() + ramp_s
        end = start + seconds

        async def client() -> None:
            async with Connection(self._url, self._headers) as connection:
                while time.monotonic() < end:
                    await self._request(connection, next(jobs), load, (start, end))

        await asyncio.gather(*(client() for _ in range(CONCURRENCY)))
        return load

    async def _request(
        self, connection: Connection, job: Job, load: Load, steady: tuple[float, float]
    ) -> None:
        sent, num_received = time.monotonic(), 0
        async for num_tokens in self._stream(connection, job):
            now = time.monotonic()
            if steady[0] <= now < steady[1]:
                load.num_tokens += num_tokens
                if not num_received and sent >= steady[0]:
                    load.first_token_ms.append((now - sent) * 1000)
            num_received += num_tokens
        if num_received != job.max_tokens:
            raise RuntimeError(f"{num_received} tokens came instead of {job.max_tokens}")

    async def _stream(self, connection: Connection, job: Job) -> AsyncIterator[int]:
        """How many tokens each chunk holds: of this model every token is a word that begins so."""
        async for _, data in connection.post_events("/v1/completions", self._body(job)):
            if data == b"[DONE]":
                continue
            choices = orjson.loads(data)["choices"]
            if num_tokens := sum(choice["text"].count("w") for choice in choices):
                yield num_tokens

    def _body(self, job: Job) -> dict[str, Any]:
        return {
            "model": self._model,
            "prompt": list(job.prompt),
            "max_tokens": job.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
