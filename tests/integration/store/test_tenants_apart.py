"""Every query names the tenant, and what it is about: asked as the owner of the tables, whom no row
policy holds back, each still finds and changes its tenant's row alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from cli.stack.database import DatabaseUrls
from store import batches, deletion, files, job_usage, jobs, responses, usage_reports, webhooks
from store.batches import BatchQuota, NewBatch
from store.file_contents import StoredPart
from store.files import NewFile, Purpose
from store.pools import AsyncPool, async_pool, connect
from tasks.errors import JobNotFound
from tasks.ids import uuid7
from tests.integration.webhooks.conftest import Hooks
from tests.support.rows import Rows

TABLES = (
    "jobs",
    "job_payloads",
    "job_results",
    "job_outcomes",
    "usage",
    "batches",
    "files",
    "file_parts",
    "file_uploads",
    "webhook_endpoints",
    "webhook_deliveries",
    "reservations",
)
NOW = datetime.now(UTC)
LONG = timedelta(days=2)


@dataclass(frozen=True)
class Things:
    """One of each kind, of one tenant."""

    tenant: UUID
    queued: UUID
    done: UUID
    batch: UUID
    file: UUID
    upload: UUID
    endpoint: UUID
    delivery: UUID

    @property
    def ids(self) -> set[str]:
        return {str(value) for value in vars(self).values()} - {str(self.tenant)}


@pytest.fixture
def rows(database: DatabaseUrls) -> Iterator[Rows]:
    with connect(database.owner, application_name="test") as owner:
        yield Rows(owner)


def _new_file(tenant: UUID, file_id: UUID) -> NewFile:
    part = StoredPart(f"key/{uuid4().hex}", 10, b"\0" * 32)
    return NewFile(
        id=file_id,
        tenant_id=tenant,
        purpose=Purpose.BATCH,
        filename="in.jsonl",
        ttl_s=None,
        part=part,
    )


def _new_batch(tenant: UUID) -> NewBatch:
    return NewBatch(
        id=uuid7(),
        tenant_id=tenant,
        api_key_id="key",
        endpoint="/v1/responses",
        completion_window="24h",
        window_s=86_400,
        service_tier="batch",
        input_file_id=uuid7(),
        input_bytes=10,
        output_ttl_s=None,
        metadata={},
    )


QUOTA = BatchQuota(max_batches=2, max_bytes=20)


async def _begin(pool: AsyncPool, tenant: UUID, upload_id: UUID) -> int | None:
    return await files.begin_upload(pool, tenant, upload_id, least=10, most=10, quota_bytes=40)


async def _make(pool: AsyncPool, rows: Rows, tenant: UUID) -> Things:
    queued, done = rows.job(tenant), rows.ended_job(tenant)
    rows.connection.execute("UPDATE jobs SET dialect = 'response' WHERE id = %s", (done,))
    for job in (queued, done):
        rows.connection.execute(
            "INSERT INTO job_payloads (job_id, tenant_id, request, prompt_token_ids, sampling)"
            " VALUES (%s, %s, '{}', '', '{}')",
            (job, tenant),
        )
    rows.connection.execute(
        "INSERT INTO job_results (job_id, tenant_id, output, last_seq, event_log) VALUES (%s, %s,"
        ' \'[{"index": 0, "logprobs": {"token_ids": [1], "values": [[-1, []]]}}]\', 3, %s)',
        (done, tenant, b"log"),
    )
    rows.connection.execute(
        "INSERT INTO usage (job_id, tenant_id, api_key_id, model, service_tier, status, payer,"
        " input_tokens, cached_tokens, output_tokens, price_version, amount_micros, currency,"
        " created_at) SELECT id, tenant_id, api_key_id, model, service_tier, 'completed', 'tenant',"
        " 5, 0, 7, 1, 9, 'USD', now() FROM jobs WHERE id = %s",
        (done,),
    )
    file, upload = uuid7(), uuid7()
    assert await _begin(pool, tenant, file) == 10
    assert await files.commit_upload(pool, _new_file(tenant, file)) is not None
    assert await _begin(pool, tenant, upload) == 10
    batch = _new_batch(tenant)
    await batches.create_batch(pool, batch, QUOTA)
    hooks = Hooks(rows, tenant)
    endpoint = hooks.endpoint()
    return Things(tenant, queued, done, batch.id, file, upload, endpoint, hooks.delivery(endpoint))


Act = Callable[[AsyncPool, UUID, Things], Awaitable[Any]]


async def _logprobs(pool: AsyncPool, tenant: UUID, of: Things) -> list[Any]:
    try:
        return [part async for part in jobs.read_logprobs(pool, tenant, of.done, 0)]
    except JobNotFound:
        return []


async def _object_keys(pool: AsyncPool, tenant: UUID, of: Things) -> Sequence[str]:
    return (await files.list_parts(pool, tenant, of.file)).object_keys


READS: dict[str, Act] = {
    "job": lambda p, t, of: jobs.get_job(p, t, of.done),
    "job with request": lambda p, t, of: jobs.get_job_with_request(p, t, of.done),
    "event log": lambda p, t, of: jobs.read_event_log(p, t, of.done, 0, 9),
    "logprobs": _logprobs,
    "conversation": lambda p, t, of: responses.conversation(p, t, of.done),
    "named_responses": lambda p, t, of: responses.named_responses(p, t, {of.done: True}),
    "batch": lambda p, t, of: batches.get_batch(p, t, of.batch),
    "file": lambda p, t, of: files.get_file(p, t, of.file),
    "parts": _object_keys,
    "endpoint": lambda p, t, of: webhooks.get_endpoint(p, t, of.endpoint),
    "delivery": lambda p, t, of: webhooks.get_delivery(p, t, of.delivery),
    "deliveries": lambda p, t, of: webhooks.list_deliveries(
        p, t, of.endpoint, status=None, after=None, limit=9
    ),
    "usage of a job": lambda p, t, of: job_usage.find_job_usage(p, t, of.done),
}
WRITES: dict[str, Act] = {
    "cancel": lambda p, t, of: jobs.request_cancel(p, t, of.queued),
    "delete job": lambda p, t, of: deletion.delete_job(p, t, of.done),
    "cancel batch": lambda p, t, of: batches.cancel_batch(p, t, of.batch),
    "delete batch": lambda p, t, of: batches.delete_batch(p, t, of.batch),
    "delete file": lambda p, t, of: files.delete_file(p, t, of.file),
    "commit": lambda p, t, of: files.commit_upload(p, _new_file(t, of.upload)),
    "abandon": lambda p, t, of: files.abandon_upload(p, t, of.upload),
    "forget": lambda p, t, of: files.forget_upload(p, t, of.upload),
    "change": lambda p, t, of: webhooks.update_endpoint(p, t, of.endpoint, {"name": "x"}),
    "rotate": lambda p, t, of: webhooks.rotate_secret(
        p, t, of.endpoint, secret=b"x" * 32, hint="x", keep_h=1
    ),
    "resend": lambda p, t, of: webhooks.resend(p, t, of.endpoint, of.delivery),
    "sample": lambda p, t, of: webhooks.add_sample(
        p, t, of.endpoint, type="response.completed", object_id="resp"
    ),
    "delete endpoint": lambda p, t, of: webhooks.delete_endpoint(p, t, of.endpoint),
}


def _snapshot(rows: Rows) -> dict[str, list[str]]:
    """All rows of all tables, each as text."""
    return {
        table: sorted(
            row["row"]
            for row in rows.connection.execute(
                f"SELECT to_jsonb(t)::text AS row FROM {table} t".encode()
            ).fetchall()
        )
        for table in TABLES
    }


def _without(snapshot: dict[str, list[str]], things: Things) -> dict[str, list[str]]:
    return {
        table: [row for row in texts if not any(id_ in row for id_ in things.ids)]
        for table, texts in snapshot.items()
    }


def _as_owner(database: DatabaseUrls, act: Callable[[AsyncPool], Awaitable[None]]) -> None:
    async def run() -> None:
        async with async_pool(database.owner, application_name="test", max_size=2) as pool:
            await act(pool)

    asyncio.run(run())


def test_nobody_reads_or_changes_what_is_anothers(database: DatabaseUrls, rows: Rows) -> None:
    async def act(pool: AsyncPool) -> None:
        mine = await _make(pool, rows, rows.tenant())
        other = rows.tenant()
        before = _snapshot(rows)

        for name, read in READS.items():
            assert await read(pool, mine.tenant, mine), name
            assert not await read(pool, other, mine), name
        for name, write in WRITES.items():
            assert not await write(pool, other, mine), name
            assert _snapshot(rows) == before, name

    _as_owner(database, act)


def test_each_statement_changes_what_it_is_asked_to_and_nothing_beside_it(
    database: DatabaseUrls, rows: Rows
) -> None:
    async def act(pool: AsyncPool) -> None:
        tenant = rows.tenant()
        mine, twin = [await _make(pool, rows, tenant) for _ in range(2)]
        assert mine.ids.isdisjoint(twin.ids)

        for name, write in WRITES.items():
            if name == "commit":  # it leaves no upload to abandon
                continue
            before = _snapshot(rows)
            await write(pool, tenant, mine)
            after = _snapshot(rows)
            assert after != before, name
            assert _without(after, mine) == _without(before, mine), name

    _as_owner(database, act)


def test_lists_sums_and_quotas_are_a_tenants_own(database: DatabaseUrls, rows: Rows) -> None:
    async def act(pool: AsyncPool) -> None:
        mine, other = [await _make(pool, rows, rows.tenant()) for _ in range(2)]

        for one in (mine, other):
            page = await jobs.list_jobs(pool, one.tenant)
            assert [row["id"] for row in page.rows] == [one.done, one.queued]
            listed = await files.list_files(
                pool, one.tenant, purpose=None, after=None, limit=9, is_newest_first=True
            )
            assert [row["id"] for row in listed] == [one.file]
            found = await batches.list_batches(pool, one.tenant, after=None, limit=9)
            assert [row["id"] for row in found] == [one.batch]
            ends = await webhooks.list_endpoints(pool, one.tenant, after=None, limit=9)
            assert [row["id"] for row in ends] == [one.endpoint]
            settled = await job_usage.list_settled(pool, one.tenant, after=0, limit=9)
            assert [row["job_id"] for row in settled] == [one.done]
            report = await usage_reports.usage_report(
                pool, one.tenant, start=NOW - LONG, end=NOW + LONG
            )
            assert [line["output_tokens"] for line in report.lines] == [7]
            # What the other one has takes no room: 20 of 40 bytes, and one batch of two.
            assert await _begin(pool, one.tenant, uuid7()) == 10
            assert await _begin(pool, one.tenant, uuid7()) == 10
            assert await _begin(pool, one.tenant, uuid7()) is None
            newer = _new_batch(one.tenant)
            await batches.create_batch(pool, newer, QUOTA)
            [newest] = await batches.list_batches(pool, one.tenant, after=None, limit=1)
            older = await batches.list_batches(pool, one.tenant, after=newer.id, limit=9)
            assert (newest["id"], [row["id"] for row in older]) == (newer.id, [one.batch])

    _as_owner(database, act)
