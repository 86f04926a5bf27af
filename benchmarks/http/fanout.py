"""P6: the same token events to many readers, by the API and by a bare uvicorn application."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
import psutil
import redis

from benchmarks.http.enqueue import BODY
from benchmarks.http.streams import Readers
from cli.stack import ports
from cli.stack.files import ROOT
from tasks.events import EventType, make_event
from tasks.ids import parse_job_id
from tasks.stream import Append, StreamWriter
from tests.support.cluster import Cluster
from tests.support.member import Tenant

NUM_READERS = 200
NUM_EVENTS = 1_000
PACE_S = 0.004  # an engine step


def platform_events_per_cpu_s(cluster: Cluster, tenant: Tenant) -> float:
    """Token events delivered a second of the API process's CPU."""
    with cluster.http(tenant) as http:
        job = http.post("/v1/jobs", json=BODY).raise_for_status().json()
    job_id = parse_job_id(job["id"])
    assert job_id is not None
    process = psutil.Process(cluster.apis[0].pid)
    with Readers(cluster.url, tenant.headers, NUM_READERS, [job["events_url"]]) as readers:
        before = _cpu_s(process)
        _publish(cluster.platform.redis_url, job_id)
        time.sleep(0.5)  # the last events are on their way
        spent = _cpu_s(process) - before
    return readers.num_events / spent


def uvicorn_events_per_cpu_s() -> float:
    """The same number of the same blocks, written by an application that does nothing else."""
    with _bare_server() as (url, process), Readers(url, {}, NUM_READERS, ["/"]) as readers:
        before = _cpu_s(process)
        httpx.post(f"{url}/go", trust_env=False, timeout=120).raise_for_status()
        time.sleep(0.5)
        spent = _cpu_s(process) - before
    return readers.num_events / spent


def _publish(redis_url: str, job_id: UUID) -> None:
    """As a worker does: one append a step."""
    with redis.Redis.from_url(redis_url) as client:
        writer = StreamWriter(client)
        writer.open(job_id, 1, 0)
        for seq in range(1, NUM_EVENTS + 1):
            event = make_event(seq, EventType.TOKEN, index=0, text=" word", token_ids=[seq])
            writer.append([Append(job_id, 1, [event])])
            time.sleep(PACE_S)


@contextmanager
def _bare_server() -> Iterator[tuple[str, psutil.Process]]:
    port = ports.choose()
    command = [sys.executable, "-m", "uvicorn", "benchmarks.http.bare:app", "--port", str(port)]
    command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for_port(port)
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("the bare server doesn't start")


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
