"""What the batch worker takes while a tenant without credit submits all it can."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import psutil

from tests.support.cluster import Cluster

NUM_BATCHES = 30
LINE_CHARS = 100_000
FILE_BYTES = 100 << 20
WATCH_S = 60.0
READ_S = 600.0  # by then all files have been read
NUM_WAITING = 30  # batches of short lines, which could run if they were paid for
NUM_SHORT_LINES = 1_000
CPU_S = 10.0  # how long its CPU is watched once it only waits
MB = 1e6
_OVER = ("completed", "failed", "expired", "cancelled")


def measure() -> dict[str, Any]:
    """Peak memory and how long a neighbour's batch of one line took while files of lines that are
    too long for the model are read; then what batches cost that wait for credit.
    """
    with Cluster(num_workers=1, num_batches=1) as cluster:
        broke = cluster.create_tenant("broke", credit_micros=0)
        other = cluster.create_tenant("other", credit_micros=10**15)
        process = psutil.Process(cluster.batches[0].pid)
        with _Peak(process) as peak:
            statuses = _submit(cluster.http(broke), _lines(FILE_BYTES), NUM_BATCHES)
            started = time.monotonic()
            other_s = _one_line_s(cluster.http(other))
            _wait_until(cluster.http(broke), _is_over)
            read_s = time.monotonic() - started
            waiting = _submit(cluster.http(broke), _short_lines(), NUM_WAITING)
            _wait_until(cluster.http(broke), lambda batch: _is_over(batch) or _waits(batch))
            before = _cpu_s(process)
            time.sleep(CPU_S)
            cores = (_cpu_s(process) - before) / CPU_S
    return {
        "batch_worker_rss_mb": round(peak.rss / MB, 1),
        "other_batch_s": round(other_s, 2),
        "batches_accepted": statuses.count(200),
        "batches_refused": len(statuses) - statuses.count(200),
        "batches_read_s": round(read_s, 1),
        "batches_waiting": waiting.count(200),
        "batch_worker_cores_waiting": round(cores, 3),
    }


def _submit(http: httpx.Client, data: bytes, num_batches: int) -> list[int]:
    """The status of each POST of a batch over the one file."""
    with http:
        body = _batch_of(http, data)
        return [http.post("/v1/batches", json=body).status_code for _ in range(num_batches)]


def _one_line_s(http: httpx.Client) -> float:
    """Seconds from submission to the end of a batch of one line; WATCH_S at most."""
    with http:
        body = _batch_of(http, _line(0, 20))
        started = time.monotonic()
        batch = http.post("/v1/batches", json=body).raise_for_status().json()
        while time.monotonic() < started + WATCH_S and batch["status"] not in _OVER:
            time.sleep(0.1)
            batch = http.get(f"/v1/batches/{batch['id']}").raise_for_status().json()
        return time.monotonic() - started


def _wait_until(http: httpx.Client, has_come: Callable[[dict[str, Any]], bool]) -> None:
    """For all batches of a tenant. Raises RuntimeError if it takes too long."""
    give_up_at = time.monotonic() + READ_S
    with http:
        while not all(map(has_come, _batches(http))):
            if time.monotonic() > give_up_at:
                raise RuntimeError("the batches have not come so far")
            time.sleep(1.0)


def _batches(http: httpx.Client) -> list[dict[str, Any]]:
    page = http.get("/v1/batches", params={"limit": 100}).raise_for_status().json()
    return list(page["data"])


def _is_over(batch: dict[str, Any]) -> bool:
    return batch["status"] in _OVER


def _waits(batch: dict[str, Any]) -> bool:
    reason = batch["millrace"]["waits_for"]
    return reason is not None and reason["code"] == "insufficient_quota"


def _batch_of(http: httpx.Client, data: bytes) -> dict[str, str]:
    """Upload a file; what to post for a batch over it."""
    form = {"files": {"file": ("lines.jsonl", data)}, "data": {"purpose": "batch"}}
    uploaded = http.post("/v1/files", timeout=300.0, **form).raise_for_status().json()  # type: ignore[arg-type]
    return {
        "input_file_id": uploaded["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _lines(num_bytes: int) -> bytes:
    line = _line(0, LINE_CHARS)
    return b"".join(_line(number, LINE_CHARS) for number in range(num_bytes // len(line)))


def _short_lines() -> bytes:
    return b"".join(_line(number, 20) for number in range(NUM_SHORT_LINES))


def _line(number: int, num_chars: int) -> bytes:
    message = {"role": "user", "content": "word " * (num_chars // 5)}
    line = {
        "custom_id": f"line-{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "demo", "messages": [message], "max_tokens": 4},
    }
    return json.dumps(line).encode() + b"\n"


class _Peak:
    """Looks at a process's memory until it is left."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.rss = 0

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.05):
            self.rss = max(self.rss, self._process.memory_info().rss)
