"""One event for every end, written by the statement that ends it."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from cli.stack.database import DatabaseUrls
from store import batch_driving, reaping
from store.jobs import request_cancel
from store.pools import async_pool
from tasks.ids import uuid7
from tests.integration.webhooks.conftest import Hooks
from tests.support.roles import Connections
from tests.support.rows import Rows


def _response(hooks: Hooks, *, is_background: bool = True, **fields: Any) -> UUID:
    job_id = hooks.rows.job(hooks.tenant_id, **fields)
    hooks.rows.connection.execute(
        "UPDATE jobs SET dialect = 'response', is_background = %s WHERE id = %s",
        (is_background, job_id),
    )
    return job_id


def _cancel(database: DatabaseUrls, tenant_id: UUID, job_id: UUID) -> None:
    async def cancel() -> None:
        async with async_pool(database.api, application_name="test", max_size=1) as pool:
            await request_cancel(pool, tenant_id, job_id, by="user")

    asyncio.run(cancel())


def _batch(rows: Rows, tenant_id: UUID, driver: UUID) -> UUID:
    batch_id = uuid7()
    rows.connection.execute(
        "INSERT INTO batches (id, tenant_id, api_key_id, endpoint, completion_window, service_tier,"
        " input_file_id, expires_at, owner) VALUES (%s, %s, 'key', '/v1/responses', '24h', 'batch',"
        " %s, now() + interval '1 day', %s)",
        (batch_id, tenant_id, uuid7(), driver),
    )
    return batch_id


def test_a_job_cancelled_in_the_queue_is_told_of_once(hooks: Hooks, database: DatabaseUrls) -> None:
    hooks.endpoint()
    job = _response(hooks)

    for _ in range(2):
        _cancel(database, hooks.tenant_id, job)

    [event] = hooks.deliveries()
    assert (event["type"], event["object_id"]) == ("response.cancelled", f"resp_{job.hex}")
    assert event["tenant_id"] == hooks.tenant_id


def test_what_the_reaper_ends_is_told_of_too(hooks: Hooks, roles: Connections) -> None:
    hooks.endpoint()
    jobs = {_response(hooks, deadline_s=-1) for _ in range(3)}

    reaping.reap_waiting(roles.worker)

    events = hooks.deliveries()
    assert {event["type"] for event in events} == {"response.failed"}
    assert {event["object_id"] for event in events} == {f"resp_{job.hex}" for job in jobs}
    assert len({event["event_id"] for event in events}) == 3


def test_only_background_responses_are_told_of(hooks: Hooks, roles: Connections) -> None:
    hooks.endpoint()
    _response(hooks, deadline_s=-1, is_background=False)
    hooks.rows.job(hooks.tenant_id, deadline_s=-1)

    assert len(reaping.reap_waiting(roles.worker)) == 2

    assert hooks.deliveries() == []


def test_each_endpoint_gets_the_types_it_asked_for(hooks: Hooks, roles: Connections) -> None:
    everything = hooks.endpoint()
    named = hooks.endpoint("https://example.com/", "response.failed", "batch.failed")
    hooks.endpoint("https://example.com/", "response.completed")
    hooks.endpoint("https://example.com/", is_enabled=False)
    Hooks(hooks.rows, hooks.rows.tenant()).endpoint()  # somebody else's
    _response(hooks, deadline_s=-1)

    reaping.reap_waiting(roles.worker)

    events = hooks.deliveries()
    assert {event["endpoint_id"] for event in events} == {everything, named}
    assert len({event["event_id"] for event in events}) == 1


@pytest.mark.parametrize("status", ["completed", "expired", "cancelled"])
def test_the_end_of_a_batch_is_told_of_once(hooks: Hooks, roles: Connections, status: str) -> None:
    hooks.endpoint()
    batch = _batch(hooks.rows, hooks.tenant_id, uuid4())
    leased = hooks.rows.one("SELECT * FROM batches WHERE id = %s", batch)

    batch_driving.begin(roles.worker, leased)
    for _ in range(2):
        batch_driving.end(roles.worker, leased, status)

    [event] = hooks.deliveries()
    assert (event["type"], event["object_id"]) == (f"batch.{status}", f"batch_{batch.hex}")


def test_a_batch_that_can_not_be_read_is_told_of(hooks: Hooks, roles: Connections) -> None:
    hooks.endpoint()
    _batch(hooks.rows, hooks.tenant_id, uuid4())
    leased = hooks.rows.one("SELECT * FROM batches")

    batch_driving.fail(roles.worker, leased, [{"code": "empty_file"}])

    assert [event["type"] for event in hooks.deliveries()] == ["batch.failed"]


def test_an_end_that_is_rolled_back_is_not_told_of(hooks: Hooks, roles: Connections) -> None:
    hooks.endpoint()
    _response(hooks, deadline_s=-1)

    with roles.worker.transaction(force_rollback=True):
        assert reaping.reap_waiting(roles.worker)

    assert hooks.deliveries() == []


def test_an_endpoint_that_is_being_deleted_holds_up_no_end(
    hooks: Hooks, roles: Connections
) -> None:
    endpoint = hooks.endpoint()
    _response(hooks, deadline_s=-1)

    with roles.owner.transaction():
        roles.owner.execute("DELETE FROM webhook_endpoints WHERE id = %s", (endpoint,))
        assert reaping.reap_waiting(roles.worker)  # doesn't wait, doesn't fail

    assert roles.worker.execute("SELECT 1 FROM jobs WHERE finished_at IS NULL").fetchall() == []
