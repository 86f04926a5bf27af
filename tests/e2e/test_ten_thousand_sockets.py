"""Ten thousand sockets on one API process: half-sent requests, half-sent bodies, idle streams."""

from __future__ import annotations

import asyncio
import os
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.cluster import Cluster
from tests.support.member import Tenant
from tests.support.waiting import wait_until

NUM_OF_EACH = 3_400
NUM_SOCKETS = 3 * NUM_OF_EACH
AT_A_TIME = 100  # within the listener's backlog
NUM_POSTS = 20
MAX_KEY_WAITING = 1_000  # streams of one key: the default
ANSWERED_S = 120.0

HALF_HEAD = b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nX-Slow: "
HALF_BODY = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\n%sContent-Length: 900\r\n\r\n{"
STREAM = b"GET /v1/jobs/%s/events HTTP/1.1\r\nHost: x\r\n%s\r\n"
JOB = {"model": "demo", "prompt": "Once upon a time", "max_tokens": 20}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Without a worker: what is queued stays so, and its streams have nothing to say."""
    with Cluster(num_workers=0) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < NUM_SOCKETS + 1_000:
        pytest.skip(f"a process may have {hard} files open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Sockets:
    """Of one attacker, all of one kind."""

    def __init__(self, url: str, request: bytes) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        self._request = request
        self._opened: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def open(self, num: int) -> None:
        for _ in range(0, num, AT_A_TIME):
            await asyncio.gather(*(self._open() for _ in range(AT_A_TIME)))

    async def _open(self) -> None:
        reader, writer = await asyncio.open_connection(*self._address)
        self._opened.append((reader, writer))
        writer.write(self._request)

    async def answers(self) -> Counter[bytes]:
        """How many have which status, once all have one. Refusals say when to come again."""
        async with asyncio.timeout(ANSWERED_S):
            return Counter(await asyncio.gather(*(self._status(r) for r, _ in self._opened)))

    async def _status(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        status = head.split(b" ")[1]
        assert status not in (b"429", b"503") or b"retry-after:" in head.lower(), head
        return status

    def close(self) -> None:
        for _, writer in self._opened:
            writer.close()


@pytest.mark.slow
def test_ten_thousand_sockets_keep_nobody_out(cluster: Cluster) -> None:
    attacker = cluster.create_tenant("attacker")
    victim = cluster.create_tenant("victim")
    num_before = _num_files(cluster)

    streams = asyncio.run(_attack(cluster, attacker, victim))

    assert set(streams) == {b"200", b"429"}
    assert 0 < streams[b"200"] <= MAX_KEY_WAITING
    wait_until(lambda: _num_files(cluster) <= num_before + 50, what="closed sockets", timeout_s=60)
    _post(cluster, attacker)


async def _attack(cluster: Cluster, attacker: Tenant, victim: Tenant) -> Counter[bytes]:
    """What streams were answered while a victim's jobs were accepted."""
    job_id = await asyncio.to_thread(_post, cluster, attacker)
    key = b"".join(f"{n}: {v}\r\n".encode() for n, v in attacker.headers.items())
    streams = Sockets(cluster.url, STREAM % (job_id.encode(), key))
    half_sent = [Sockets(cluster.url, HALF_BODY % key), Sockets(cluster.url, HALF_HEAD)]
    try:
        for sockets in (streams, *half_sent):
            await sockets.open(NUM_OF_EACH)
        for _ in range(NUM_POSTS):
            await asyncio.to_thread(_post, cluster, victim)
        return await streams.answers()
    finally:
        for sockets in (streams, *half_sent):
            sockets.close()


def _post(cluster: Cluster, tenant: Tenant) -> str:
    answer = httpx.post(f"{cluster.url}/v1/jobs", json=JOB, headers=tenant.headers, timeout=10)
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def _num_files(cluster: Cluster) -> int:
    (api,) = cluster.apis
    return len(os.listdir(Path(f"/proc/{api.pid}/fd")))
