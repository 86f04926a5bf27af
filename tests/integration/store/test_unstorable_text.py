"""Text that Postgres can't hold: a request with it is refused, and what we say is mended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from store.attempts import Claimed, finish, requeue, save_checkpoints
from store.batches import BatchQuota, NewBatch, create_batch
from store.estimates import output_quantiles
from store.files import list_files
from store.pools import AsyncPool, DictConnection
from store.tenants import find_api_key
from store.webhooks import create_endpoint, update_endpoint
from tasks.errors import InvalidRequest
from tasks.ids import uuid7
from tasks.jobs import ENGINE_ERROR
from tests.integration.store.conftest import AsApi
from tests.integration.store.writes import (
    checkpoint,
    claim,
    count,
    finish_of,
    requeue_of,
    running_checkpoint,
)
from tests.support.jobs import Jobs


@pytest.mark.parametrize(
    "changes",
    [
        {"request": {"prompt": "a\0b"}},
        {"request": {"prompt": "half a pair: \ud83d"}},
        {"sampling": {"stop": ["\0"]}},
        {"metadata": {"trace": "\0"}},
        {"end_user": "ann\0"},
        {"idempotency_key": "key\0"},
    ],
    ids="-".join,
)
def test_text_that_can_not_be_stored_makes_the_request_invalid(
    jobs: Jobs, changes: dict[str, Any]
) -> None:
    request = jobs.new(**{"idempotency_key": "key", **changes})

    with pytest.raises(InvalidRequest):
        jobs.admit(request)

    written = ["jobs", "job_payloads", "reservations", "idempotency_keys"]
    assert [count(jobs, table) for table in written] == [0, 0, 0, 0]


UGLY = "a\0b \ud83d c"
STORED = "a\ufffdb \ufffd c"
PAGE: dict[str, Any] = {"after": None, "limit": 1, "is_newest_first": True}
NO_NUMBER = float("-inf")  # a log probability of nothing


@pytest.fixture
def claimed(connection: DictConnection, worker_id: UUID, jobs: Jobs) -> Claimed:
    return claim(connection, worker_id, jobs.add())


def test_a_result_is_stored_whatever_the_model_said(
    connection: DictConnection, worker_id: UUID, jobs: Jobs, claimed: Claimed
) -> None:
    call = {"name": UGLY, "arguments": f'{{"x": "{UGLY}"}}'}
    logprobs = {"tokens": [UGLY], "values": [NO_NUMBER, -0.5]}
    output = {"index": 0, "text": UGLY, "calls": [call], "logprobs": logprobs, UGLY: 2**70}

    assert finish(connection, finish_of(claimed, worker_id, output=[output]))

    stored = jobs.row(claimed.job_id)["output"][0]
    assert stored["text"] == STORED
    assert stored["calls"] == [{"name": STORED, "arguments": f'{{"x": "{STORED}"}}'}]
    assert stored["logprobs"] == {"tokens": [STORED], "values": [None, -0.5]}
    assert stored[STORED] == 2**70


def test_a_failure_is_stored_whatever_its_message_quotes(
    connection: DictConnection, worker_id: UUID, jobs: Jobs, claimed: Claimed
) -> None:
    end = finish_of(claimed, worker_id, ending=ENGINE_ERROR, error_message=UGLY, output=[])

    assert finish(connection, end)

    assert jobs.row(claimed.job_id)["error_message"] == STORED


def test_checkpoints_are_stored_whatever_the_text(
    connection: DictConnection, worker_id: UUID, jobs: Jobs, claimed: Claimed
) -> None:
    ugly = replace(checkpoint("ab"), text=UGLY, splits=((1, 2, UGLY),))

    save_checkpoints(connection, [running_checkpoint(claimed, "ab", checkpoint=ugly)])

    [attempt] = jobs.query("SELECT checkpoint_text, checkpoint_splits FROM job_attempts")
    assert attempt == {"checkpoint_text": STORED, "checkpoint_splits": [[1, 2, STORED]]}
    assert requeue(connection, requeue_of(claimed, worker_id, reason=UGLY, checkpoint=ugly))


def test_a_backslash_before_a_zero_stays_as_it_is(
    connection: DictConnection, worker_id: UUID, jobs: Jobs, claimed: Claimed
) -> None:
    text = "\\u0000 and \\ud83d, \U0001f600"

    finish(connection, finish_of(claimed, worker_id, output=[{"text": text}]))

    assert jobs.row(claimed.job_id)["output"] == [{"text": text}]


@pytest.mark.parametrize("ugly", ["\0", "\ud83d"], ids=["nul", "surrogate"])
@pytest.mark.parametrize(
    "write",
    [
        lambda pool, tenant, ugly: _create(pool, _batch(tenant, metadata={"a": ugly})),
        lambda pool, tenant, ugly: _create(pool, _batch(tenant, metadata={ugly: "a"})),
        lambda pool, tenant, ugly: create_endpoint(pool, tenant, _endpoint(name=ugly)),
        lambda pool, tenant, ugly: create_endpoint(pool, tenant, _endpoint(event_types=[ugly])),
        lambda pool, tenant, ugly: update_endpoint(pool, tenant, uuid7(), {"name": ugly}),
        lambda pool, tenant, ugly: find_api_key(pool, ugly),
        lambda pool, tenant, ugly: list_files(pool, tenant, purpose=ugly, **PAGE),
        output_quantiles,
    ],
    ids=["metadata", "metadata-key", "name", "list", "update", "key", "filter", "model"],
)
def test_no_request_gets_such_text_in_or_breaks_on_it(
    jobs: Jobs, as_api: AsApi, write: Callable[[AsyncPool, UUID, str], Any], ugly: str
) -> None:
    with pytest.raises(InvalidRequest):
        as_api(lambda pool: write(pool, jobs.tenant_id, ugly))

    assert [count(jobs, table) for table in ("batches", "webhook_endpoints")] == [0, 0]


async def _create(pool: AsyncPool, new: NewBatch) -> None:
    await create_batch(pool, new, BatchQuota(max_batches=1, max_bytes=1))


def _batch(tenant_id: UUID, **changes: Any) -> NewBatch:
    fields: dict[str, Any] = {
        "id": uuid7(),
        "tenant_id": tenant_id,
        "api_key_id": "key",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "window_s": 86_400,
        "service_tier": "batch",
        "input_file_id": uuid7(),
        "input_bytes": 1,
        "output_ttl_s": None,
        "metadata": {},
    }
    return NewBatch(**{**fields, **changes})


def _endpoint(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "id": uuid7(),
        "url": "https://example.com/",
        "event_types": ["batch.failed"],
        "name": "mine",
        "secret": b"secret",
        "secret_hint": "cret",
    }
    return fields | changes
