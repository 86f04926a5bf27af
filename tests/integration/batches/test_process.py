"""What a batch worker's process opens for its driver, that it closes it again, and that it doesn't
live on without its driver.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cli.stack.database import DatabaseUrls
from tests.support.celery_workers import celery_worker
from workers.batches import process
from workers.batches.process import DriverThread


class _Driver:
    """Asks each pool who it is, once."""

    def __init__(self, **parts: Any) -> None:
        self.parts = parts
        self.users: list[str] = []
        made.append(self)

    async def run(self) -> None:
        with self.parts["pool"].connection() as connection:
            self.users.append(connection.execute("SELECT current_user AS name").fetchone()["name"])
        async with self.parts["api_pool"].connection() as connection:
            cursor = await connection.execute("SELECT current_user AS name")
            self.users.append((await cursor.fetchone())["name"])


made: list[_Driver] = []


async def test_a_driver_has_a_pool_of_each_role_while_it_runs(
    database: DatabaseUrls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_DATABASE_URL_WORKER", database.worker)
    monkeypatch.setenv("MILLRACE_DATABASE_URL_API", database.api)
    monkeypatch.setenv("MILLRACE_FILES_URL", str(tmp_path))
    monkeypatch.setattr(process, "Driver", _Driver)
    made.clear()

    await DriverThread(cast(Any, SimpleNamespace()))._main()

    [driver] = made
    assert driver.users == ["millrace_worker", "millrace_api"]
    assert driver.parts["pool"].closed
    assert driver.parts["api_pool"].closed
    assert driver.parts["admission"].registry is not None


def test_a_worker_whose_driver_can_not_start_ends_and_says_why_in_one_line(
    database: DatabaseUrls, tmp_path: Path
) -> None:
    """Redis being away or not: its supervisor sees that nothing works."""
    with celery_worker(
        *("-P", "threads", "-I", "workers.batches", "-Q", "batches"),
        urls=database,
        role="worker",
        redis_url="redis://127.0.0.1:1/0",
        folder=tmp_path,
        environment={"MILLRACE_FILES_URL": "nowhere://bucket"},
    ) as worker:
        assert worker.wait(30)

    assert worker.exit_code == 1
    text = (tmp_path / "worker.log").read_text()
    [line] = [line for line in text.splitlines() if "worker_ends" in line]
    assert "batch-driver" in line
    assert "nowhere" in line
    assert "Traceback" not in text
