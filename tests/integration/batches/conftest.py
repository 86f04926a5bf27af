"""A batch driver on a database of its own, with the real admission and a tiny model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from api.admission import Admission
from api.limits.limiter import NoLimits
from api.prompts.registry import ModelRegistry
from api.services import open_admission
from cli.stack.database import DatabaseUrls
from store.batch_turns import BatchRow, lease
from store.catalog import apply_catalog
from store.file_contents import FileContents
from store.file_output import append_part, open_output, parts_of
from store.pools import AsyncPool, SyncPool, async_pool, sync_pool
from store.tenants import create_api_key
from tasks.app import app as celery
from tasks.ids import uuid7
from tests.support.roles import Connections
from tests.support.rows import Rows
from tests.support.services import Services
from tests.support.tiny_tokenizer import write_model_folder
from workers.batches.driver import Driver

URL = "/v1/chat/completions"
_CATALOG = """
[models.tiny]
source = "tiny"
max_output_tokens = 128
prices.priority = { input_micros = 500000, cached_micros = 50000, output_micros = 1000000 }
prices.default = { input_micros = 500000, cached_micros = 50000, output_micros = 1000000 }
prices.flex = { input_micros = 500000, cached_micros = 50000, output_micros = 1000000 }
prices.batch = { input_micros = 500000, cached_micros = 50000, output_micros = 1000000 }
"""


@dataclass
class Batches:
    """Makes batches and drives them, step by step."""

    urls: DatabaseUrls
    rows: Rows
    contents: FileContents
    pool: SyncPool
    keys: dict[UUID, str] = field(default_factory=dict)

    def tenant(self, *, credit_micros: int = 1_000_000_000) -> UUID:
        tenant_id = self.rows.tenant(credit_micros=credit_micros)
        create_api_key(self.rows.connection, tenant_id=tenant_id, name="test", pepper=b"pepper")
        row = self.rows.one("SELECT key_id FROM api_keys WHERE tenant_id = %s", tenant_id)
        self.keys[tenant_id] = row["key_id"]
        return tenant_id

    def add(self, tenant_id: UUID, lines: list[Any]) -> UUID:
        """A batch whose file has these lines, each a body or a whole line as bytes."""
        data = b"".join(
            line if isinstance(line, bytes) else _line(number, line)
            for number, line in enumerate(lines, start=1)
        )
        connection = self.rows.connection
        file_id = open_output(connection, tenant_id, filename="in.jsonl")
        writer = self.contents.new_part(tenant_id, file_id)
        writer.write(data)
        append_part(connection, tenant_id, file_id, writer.finish())
        batch_id = uuid7()
        connection.execute(
            "INSERT INTO batches (id, tenant_id, api_key_id, endpoint, completion_window,"
            " service_tier, input_file_id, input_bytes, expires_at) VALUES (%s, %s, %s, %s, '24h',"
            " 'batch', %s, %s, now() + interval '1 day')",
            (batch_id, tenant_id, self.keys[tenant_id], URL, file_id, len(data)),
        )
        return batch_id

    def row(self, batch_id: UUID) -> dict[str, Any]:
        return self.rows.one("SELECT * FROM batches WHERE id = %s", batch_id)

    def lease(self, batch_id: UUID) -> BatchRow:
        """Its turn, now."""
        self.wake()
        with self.pool.connection() as connection:
            row = lease(connection, batch_id)
        assert row is not None
        return row

    def wake(self) -> None:
        """Nobody sleeps, and no line is put off."""
        self.rows.connection.execute("UPDATE batches SET next_step_at = now()")
        self.rows.connection.execute("UPDATE batch_lines SET try_at = NULL")

    def end_jobs(self) -> None:
        """All jobs end as a worker would end them."""
        connection = self.rows.connection
        output = json.dumps([{"index": 0, "text": "four", "finish_reason": "stop"}])
        connection.execute(
            "INSERT INTO job_results (job_id, tenant_id, output, last_seq) SELECT id, tenant_id,"
            " %s::jsonb, 3 FROM jobs WHERE finished_at IS NULL",
            (output,),
        )
        connection.execute(
            "UPDATE jobs SET status = 'completed', finished_at = now(), output_tokens = 4,"
            " cached_tokens = 1 WHERE finished_at IS NULL"
        )

    def lines(self, batch_id: UUID, column: str = "output_file_id") -> list[dict[str, Any]]:
        """What stands in a file of a batch."""
        row = self.row(batch_id)
        if row[column] is None:
            return []
        parts = parts_of(self.rows.connection, row["tenant_id"], row[column])
        data = b"".join(self.contents.open([part.object_key for part in parts]))
        return [json.loads(line) for line in data.splitlines()]

    def drive(self, until: Callable[[], object], *, admission: Any = None) -> None:
        """Steps of one driver until something is so; nothing sleeps meanwhile."""

        async def steps(driver: Driver) -> None:
            for _ in range(400):
                if until():
                    return
                self.wake()
                await driver.step()
            raise AssertionError("not so after 400 steps")

        self.run(steps, admission=admission)

    def run(self, act: Callable[[Driver], Awaitable[None]], *, admission: Any = None) -> None:
        """With a driver."""
        asyncio.run(self._run(act, admission))

    async def _run(self, act: Callable[[Driver], Awaitable[None]], double: Any) -> None:
        async with AsyncExitStack() as stack:
            api_pool = async_pool(self.urls.api, application_name="test-api", max_size=4)
            await stack.enter_async_context(api_pool)
            admission = await self._admission(stack, api_pool)
            driver = Driver(
                pool=self.pool,
                api_pool=api_pool,
                admission=double(admission) if double else admission,
                contents=self.contents,
            )
            with capture_logs():  # tracebacks of failures that are meant take long to print
                await act(driver)

    async def _admission(self, stack: AsyncExitStack, api_pool: AsyncPool) -> Admission:
        registry = ModelRegistry(api_pool)
        await registry.refresh()
        return await open_admission(
            stack, api_pool, registry, limiter=NoLimits(), num_threads=1, max_waiting=8
        )


def _line(number: int, body: dict[str, Any]) -> bytes:
    fields = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    line = {"custom_id": f"line-{number}", "url": URL, "body": fields | body}
    return json.dumps(line).encode() + b"\n"


@pytest.fixture(scope="session")
def catalog_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalog")
    write_model_folder(folder / "tiny", context_length=256)
    (folder / "catalog.toml").write_text(_CATALOG)
    return folder / "catalog.toml"


@pytest.fixture
def batches(  # noqa: PLR0917
    database: DatabaseUrls,
    services: Services,
    roles: Connections,
    rows: Rows,
    catalog_file: Path,
    tmp_path: Path,
) -> Iterator[Batches]:
    celery.conf.update(broker_url=services.redis_url)
    apply_catalog(roles.owner, catalog_file)
    with sync_pool(database.worker, application_name="test-batches", max_size=4) as pool:
        yield Batches(database, rows, FileContents(str(tmp_path / "files")), pool)
