"""The billing worker as a process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis

from billing import ledger
from billing.usage import Settler, Settling, settle
from cli.stack.database import DatabaseUrls
from store.loops import PostgresLoop
from store.pools import DictConnection
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


def test_a_worker_takes_hints_from_its_queue(
    services: Services, database: DatabaseUrls, tmp_path: Path
) -> None:
    _send_hint(services.redis_url)
    with (
        redis.Redis.from_url(services.redis_url) as client,
        celery_worker(
            *ARGS, urls=database, role="billing", redis_url=services.redis_url, folder=tmp_path
        ),
    ):
        wait_until(lambda: not client.exists("cel:billing"), timeout_s=30, what="the first hint")
        _send_hint(services.redis_url)

        wait_until(lambda: not client.exists("cel:billing"), what="the second hint")


def test_a_hint_wakes_a_settler_that_would_wait_for_long(
    database: DatabaseUrls, roles: Connections, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = threading.Event()

    def step(connection: DictConnection) -> bool:
        has_more = Settling().step(connection)
        looked.set()
        return has_more

    settler = PostgresLoop("settler", database.billing, step, interval_s=3_600)
    monkeypatch.setattr(Settler, "thread", settler)
    settler.start()
    try:
        assert looked.wait(10)
        job = rows.ended_job(rows.tenant())

        settle.apply(args=[str(job)])

        wait_until(lambda: ledger.entry_for_job(roles.owner, job), what="the settling")
    finally:
        settler.stop()


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


def test_the_settler_ends_with_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(Settler, "thread", SimpleNamespace(stop=lambda: ended.append("settler")))

    Settler.__new__(Settler).stop(None)

    assert ended == ["settler"]
