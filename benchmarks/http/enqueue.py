"""P5: accepting jobs, against sending Celery messages."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping

from benchmarks.http_client import Connection
from cli.stack.files import ROOT
from tests.support.cluster import Cluster
from tests.support.member import Tenant

CONCURRENCY = 32
BODY = {"model": "demo", "prompt": "What is a lease?", "max_tokens": 16}


def accepted_per_s(cluster: Cluster, tenant: Tenant, *, seconds: float) -> float:
    """Jobs accepted by the one API process, from clients in a process of their own."""
    return _in_process("posts", cluster.url, json.dumps(tenant.headers), str(seconds))


def sent_per_s(cluster: Cluster, *, seconds: float) -> float:
    """Messages that one process sends to the same Redis, one after the other."""
    environment = {"MILLRACE_REDIS_URL": cluster.platform.redis_url}
    return _in_process("sends", str(seconds), environment=environment)


def empty_queues(cluster: Cluster) -> None:
    """Nobody works here: what was queued must not weigh on the next round."""
    with cluster.redis() as redis:
        redis.flushdb()


def _in_process(*arguments: str, environment: Mapping[str, str] | None = None) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.http.enqueue", *arguments],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(done.stdout.splitlines()[-1])


async def _posts(url: str, headers: dict[str, str], seconds: float) -> float:
    end = time.monotonic() + seconds
    num_accepted = 0

    async def client() -> None:
        nonlocal num_accepted
        async with Connection(url, headers) as connection:
            while time.monotonic() < end:
                await connection.post("/v1/jobs", BODY)
                num_accepted += 1

    await asyncio.gather(*(client() for _ in range(CONCURRENCY)))
    return num_accepted / seconds


def _sends(seconds: float) -> float:
    from tasks.app import app  # noqa: PLC0415 (the other arm needs no Celery)
    from tasks.inference import GENERATE  # noqa: PLC0415
    from tasks.queues import ServiceTier, queue_for  # noqa: PLC0415

    @app.task(name=GENERATE, ignore_result=True)
    def task(job_id: str) -> None:
        return None

    queue = queue_for("default", ServiceTier.DEFAULT, 0)
    end = time.monotonic() + seconds
    num_sent = 0
    while time.monotonic() < end:
        task.apply_async((uuid.uuid4().hex,), queue=queue)
        num_sent += 1
    return num_sent / seconds


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    if kind == "posts":
        print(asyncio.run(_posts(rest[0], json.loads(rest[1]), float(rest[2]))))
    else:
        print(_sends(float(rest[0])))
