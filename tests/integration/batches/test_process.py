"""What a batch worker's process opens for its driver, and that it closes it again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cli.stack.database import DatabaseUrls
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
