"""The largest file there may be goes through a real API process without resting in its memory."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.support.cluster import Cluster

MIB = 1 << 20
NUM_MIB = 200
MAX_GROWTH_MIB = 100

_HEAD = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
)
_END = b"\r\n--b--\r\n"
_LINES = (b'{"custom_id": "0123456789"}\n' * (MIB // 28 + 1))[:MIB]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(num_workers=0, num_billing=0, num_maintenance=0) as started:
        yield started


class _PeakRss:
    """The most memory a process had, asked every few ms."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.first: int = self._process.memory_info().rss
        self.peak: int = self.first

    def __enter__(self) -> _PeakRss:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def growth_mib(self) -> float:
        return float(self.peak - self.first) / MIB

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.peak = max(self.peak, self._process.memory_info().rss)


def _body() -> Iterator[bytes]:
    yield _HEAD
    for _ in range(NUM_MIB):
        yield _LINES
    yield _END


def test_200_mib_go_up_and_down_through_little_memory(cluster: Cluster) -> None:
    tenant = cluster.create_tenant("acme")
    expected = hashlib.sha256(_LINES * NUM_MIB).hexdigest()
    headers = {"Content-Type": "multipart/form-data; boundary=b"}

    with cluster.http(tenant) as http, _PeakRss(cluster.apis[0].pid) as memory:
        created = http.post("/v1/files", content=_body(), headers=headers, timeout=100)
        digest = hashlib.sha256()
        path = f"/v1/files/{created.json()['id']}/content"
        with http.stream("GET", path, timeout=100) as answer:
            for chunk in answer.iter_bytes():
                digest.update(chunk)

    assert created.json()["bytes"] == NUM_MIB * MIB
    assert digest.hexdigest() == expected
    assert memory.growth_mib < MAX_GROWTH_MIB


def test_a_killed_api_leaves_an_upload_that_is_no_file(cluster: Cluster) -> None:
    tenant = cluster.create_tenant("globex")
    api = cluster.apis[0]

    def body() -> Iterator[bytes]:
        yield _HEAD
        for _ in range(8):
            yield _LINES
        cluster.wait_until(
            lambda: any(
                path.is_file() for path in (cluster.folder / "files").glob(f"{tenant.id.hex}/*/*")
            ),
            what="stored bytes",
        )
        api.kill()
        yield _LINES

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    with cluster.http(tenant) as http, pytest.raises(httpx.TransportError):
        http.post("/v1/files", content=body(), headers=headers)
    api.start()

    with cluster.http(tenant) as http:
        assert http.get("/v1/files").json()["data"] == []
    (upload,) = cluster.query("SELECT * FROM file_uploads")
    assert upload["tenant_id"] == tenant.id
