"""The maintenance worker as a process."""

from __future__ import annotations

from pathlib import Path

import psutil
import redis

from cli.stack.database import DatabaseUrls
from tasks.maintenance import BEAT_SCHEDULE
from tests.support.celery_workers import celery_worker
from tests.support.roles import Connections
from tests.support.rows import Rows
from tests.support.services import Services
from tests.support.waiting import wait_until

NOWHERE = "redis://127.0.0.1:1/0"


def _args(tmp_path: Path) -> list[str]:
    return ["-B", "-s", str(tmp_path / "beat"), "-I", "workers.maintenance", "-Q", "maintenance"]


def test_a_lost_job_comes_back_and_is_hinted(
    services: Services, database: DatabaseUrls, roles: Connections, rows: Rows, tmp_path: Path
) -> None:
    with redis.Redis.from_url(services.redis_url) as client:
        client.flushall()
        job = rows.running_job(rows.tenant(), rows.worker(expires_s=-1))

        with celery_worker(
            *_args(tmp_path),
            urls=database,
            role="worker",
            redis_url=services.redis_url,
            folder=tmp_path,
        ):
            lane = "cel:inference.demo.default.3"
            wait_until(lambda: client.llen(lane), timeout_s=30, what="the hint")

    assert rows.of_job(job)["status"] == "queued"


def test_the_reaper_needs_no_redis(
    database: DatabaseUrls, roles: Connections, rows: Rows, tmp_path: Path
) -> None:
    job = rows.running_job(rows.tenant(), rows.worker(expires_s=-1))

    with celery_worker(
        *_args(tmp_path), urls=database, role="worker", redis_url=NOWHERE, folder=tmp_path
    ):
        wait_until(lambda: rows.of_job(job)["status"] == "queued", timeout_s=30)


def test_beat_does_not_outlive_a_worker_that_is_killed(
    services: Services, database: DatabaseUrls, tmp_path: Path
) -> None:
    with celery_worker(
        *_args(tmp_path),
        urls=database,
        role="worker",
        redis_url=services.redis_url,
        folder=tmp_path,
    ) as child:
        worker, log = psutil.Process(child.pid), tmp_path / "worker.log"
        wait_until(lambda: "beat: Starting" in log.read_text(), timeout_s=30)
        beat = worker.children()
        worker.kill()
        _, left = psutil.wait_procs(beat, timeout=20)

    assert len(beat) == 1
    assert left == []


def test_every_periodic_task_expires_before_the_next_is_sent() -> None:
    for entry in BEAT_SCHEDULE.values():
        assert entry["options"]["expires"] <= entry["schedule"]
