"""The billing worker as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import redis

from billing import ledger
from cli.stack.database import DatabaseUrls
from tests.support.celery_workers import celery_worker
from tests.support.roles import Connections
from tests.support.rows import Rows
from tests.support.services import Services
from tests.support.waiting import wait_until

NOWHERE = "redis://127.0.0.1:1/0"
ARGS = ("-I", "billing.usage", "-Q", "billing")


def test_a_job_whose_hint_was_lost_is_settled(
    services: Services, database: DatabaseUrls, roles: Connections, rows: Rows, tmp_path: Path
) -> None:
    job = rows.ended_job(rows.tenant())

    with celery_worker(
        *ARGS, urls=database, role="billing", redis_url=services.redis_url, folder=tmp_path
    ):
        wait_until(
            lambda: ledger.entry_for_job(roles.owner, job), timeout_s=30, what="the settling"
        )


def test_settling_needs_no_redis_and_survives_a_lost_connection(
    database: DatabaseUrls, roles: Connections, rows: Rows, tmp_path: Path
) -> None:
    first = rows.ended_job(rows.tenant())
    with celery_worker(*ARGS, urls=database, role="billing", redis_url=NOWHERE, folder=tmp_path):
        wait_until(
            lambda: ledger.entry_for_job(roles.owner, first), timeout_s=30, what="the settling"
        )

        roles.billing.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'millrace-settler'"
        )
        second = rows.ended_job(rows.tenant())

        wait_until(
            lambda: ledger.entry_for_job(roles.owner, second), timeout_s=10, what="the settling"
        )


def test_a_hint_is_answered_by_a_waiting_worker(
    services: Services, database: DatabaseUrls, roles: Connections, rows: Rows, tmp_path: Path
) -> None:
    with (
        redis.Redis.from_url(services.redis_url) as client,
        celery_worker(
            *ARGS, urls=database, role="billing", redis_url=services.redis_url, folder=tmp_path
        ),
    ):
        client.delete("cel:billing")
        log = tmp_path / "billing.log"
        wait_until(lambda: "ready." in log.read_text(), timeout_s=30, what="the worker")
        _send_hint(services.redis_url)
        wait_until(lambda: "billing.settle" in log.read_text().partition("ready.")[2])


def test_a_hint_costs_its_sender_nothing_when_redis_is_away() -> None:
    script = (
        "import time, uuid; from tasks.billing import enqueue_settle\n"
        "began = time.monotonic()\n"
        "for _ in range(2_000): enqueue_settle(uuid.uuid4())\n"
        "assert time.monotonic() - began < 1.0"
    )

    _run(script, NOWHERE)


def _send_hint(redis_url: str) -> None:
    script = (
        "import time, uuid; from tasks import billing; billing.enqueue_settle(uuid.uuid4())\n"
        "while not billing.SENT._value.get(): time.sleep(0.01)"
    )
    _run(script, redis_url)


def _run(script: str, redis_url: str) -> None:
    """As another process would: this one's Celery has read its settings."""
    environment = os.environ | {"MILLRACE_REDIS_URL": redis_url}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=30)
