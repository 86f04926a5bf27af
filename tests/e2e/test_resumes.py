"""A thousand resumes of a hundred chat streams at random points, across two API replicas."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.cluster import Cluster
from tests.support.member import Tenant

NUM_STREAMS = 100
MIN_RESUMES = 1_000
PATH = "/v1/chat/completions"
MAX_CHUNKS = 5  # read before a client drops


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    environment = {"MILLRACE_STUB_STEP_MS": "20"}
    with Cluster(num_apis=2, num_workers=2, worker_environment=environment) as started:
        yield started


class Reader:
    """One stream, read by a client that drops again and again."""

    def __init__(self, clients: list[httpx.AsyncClient], seed: int) -> None:
        self._clients = clients
        self._rng = random.Random(seed)
        self._cursor = 0
        self._is_over = False
        self.text = ""
        self.num_resumes = 0

    async def read(self, number: int) -> str:
        """To the end; the id of the completion."""
        messages = [{"role": "user", "content": f"question {number}"}]
        body = {"model": "demo", "messages": messages, "max_tokens": 80, "stream": True}
        id_ = ""
        async with self._client().stream("POST", PATH, json=body) as answer:
            id_ = answer.headers["x-millrace-job-id"].replace("job_", "chatcmpl-")
            await self._take(answer)
        while not self._is_over:
            self.num_resumes += 1
            headers = {"Last-Event-ID": str(self._cursor)} if self._cursor else {}
            url = f"{PATH}/{id_}/events"
            async with self._client().stream("GET", url, headers=headers) as answer:
                await self._take(answer)
        return id_

    def _client(self) -> httpx.AsyncClient:
        return self._rng.choice(self._clients)

    async def _take(self, answer: httpx.Response) -> None:
        """Some chunks, each with its number; what comes without one belongs to the next."""
        assert answer.status_code == 200
        left = self._rng.randint(1, MAX_CHUNKS)
        block: dict[str, str] = {}
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            if line:
                block[name] = value
                continue
            if block.get("data") == "[DONE]":
                self._is_over = True
                return
            self._note(block)
            block = {}
            left -= 1
            if not left:
                return

    def _note(self, block: dict[str, str]) -> None:
        chunk: dict[str, Any] = json.loads(block["data"])
        assert "error" not in chunk
        for choice in chunk["choices"]:
            self.text += choice["delta"].get("content") or ""
        seq = int(block["id"])
        assert seq > self._cursor
        self._cursor = seq


@pytest.mark.slow
def test_a_thousand_resumes_give_the_exact_texts(cluster: Cluster) -> None:
    tenant = cluster.create_tenant("acme")

    readers, texts = asyncio.run(_read_all(cluster, tenant))

    assert [reader.text for reader in readers] == texts
    assert all(texts)
    assert sum(reader.num_resumes for reader in readers) >= MIN_RESUMES


async def _read_all(cluster: Cluster, tenant: Tenant) -> tuple[list[Reader], list[str]]:
    limits = httpx.Limits(max_connections=None)
    clients = [
        httpx.AsyncClient(
            base_url=api.url, headers=tenant.headers, timeout=60, trust_env=False, limits=limits
        )
        for api in cluster.apis
    ]
    try:
        readers = [Reader(clients, seed) for seed in range(NUM_STREAMS)]
        ids = await asyncio.gather(*(reader.read(n) for n, reader in enumerate(readers)))
        answers = [await clients[0].get(f"{PATH}/{id_}") for id_ in ids]
    finally:
        for client in clients:
            await client.aclose()
    return readers, [answer.json()["choices"][0]["message"]["content"] for answer in answers]
