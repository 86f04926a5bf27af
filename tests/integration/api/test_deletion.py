"""One canary through every dialect and a file: after its deletion it stands nowhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import openai
import pytest

from cli.stack.database import DatabaseUrls
from store.pools import DictConnection, connect
from tests.integration.api.conftest import Tenant
from tests.integration.api.producer import Producer
from tests.integration.api.responding import is_queued
from tests.support.canary import found_in_postgres, found_in_redis, found_on_disk
from tests.support.services import Services
from workers.maintenance.file_sweeper import FileSweeper
from workers.maintenance.purger import Purger

CANARY = "kanarienvogel"
_WORDS: dict[str, Any] = {"metadata": {"a": CANARY}, "stop": [CANARY]}
_MESSAGES = [{"role": "user", "content": CANARY}]

# path, body, prefix of the ids, object of the answer
DIALECTS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "job": ("/v1/jobs", {"prompt": CANARY} | _WORDS, "job_", "job"),
    "chat": (
        "/v1/chat/completions",
        {"messages": _MESSAGES} | _WORDS,
        "chatcmpl-",
        "chat.completion.deleted",
    ),
    "completion": (
        "/v1/completions",
        {"prompt": CANARY} | _WORDS,
        "cmpl-",
        "text_completion.deleted",
    ),
    "response": ("/v1/responses", {"input": CANARY} | _WORDS, "resp_", "response"),
}


async def _ended(
    http: httpx.AsyncClient, owner: DictConnection, producer: Producer, dialect: str, **fields: Any
) -> UUID:
    path, body, _, _ = DIALECTS[dialect]
    headers = {"Idempotency-Key": f"{CANARY}-{dialect}"}
    asked = asyncio.create_task(
        http.post(path, json={"model": "tiny", **body, **fields}, headers=headers)
    )
    await is_queued(owner)
    job = producer.claim()
    job.say(CANARY)
    owner.execute("UPDATE job_attempts SET checkpoint_text = %s", (CANARY,))
    producer.finish(job)
    assert (await asked).is_success
    return job.job_id


def _urls(job_id: UUID) -> list[str]:
    """Wherever a job may be looked at, in any dialect."""
    ids = {path: f"{path}/{prefix}{job_id.hex}" for path, _, prefix, _ in DIALECTS.values()}
    return [
        *ids.values(),
        *(f"{url}/events" for path, url in ids.items() if path != "/v1/responses"),
        ids["/v1/responses"] + "/input_items",
        ids["/v1/responses"] + "?stream=true",
    ]


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_nothing_is_left_of_what_is_deleted_but_its_bill(
    http: httpx.AsyncClient,
    owner: DictConnection,
    producer: Producer,
    purge: Callable[[], None],
    dialect: str,
) -> None:
    job_id = await _ended(http, owner, producer, dialect)
    path, _, prefix, kind = DIALECTS[dialect]
    assert found_in_postgres(owner, CANARY)
    assert found_in_redis(producer.redis, CANARY)

    answer = await http.delete(f"{path}/{prefix}{job_id.hex}")

    assert answer.json() == {"id": f"{prefix}{job_id.hex}", "object": kind, "deleted": True}
    assert found_in_postgres(owner, CANARY) == []
    assert found_in_redis(producer.redis, CANARY) == []
    for url in _urls(job_id):
        assert (await http.get(url)).status_code == 404, url
    assert (await http.delete(f"{path}/{prefix}{job_id.hex}")).status_code == 404
    assert (await http.get("/v1/jobs")).json()["data"] == []
    purge()
    assert owner.execute("SELECT 1 FROM jobs").fetchone() is None
    assert owner.execute("SELECT 1 FROM job_attempts").fetchone() is None
    assert owner.execute("SELECT job_id FROM job_outcomes").fetchone() == {"job_id": job_id}


@pytest.fixture
def purge(database: DatabaseUrls, services: Services) -> Callable[[], None]:
    """Maintenance, a quarter of an hour later."""

    def run() -> None:
        with connect(database.worker, application_name="test") as worker:
            purger = Purger(services.redis_url, keep_s=0.0)
            purger.step(worker)
            purger.step(worker)

    return run


async def test_openais_client_deletes_a_chat_completion(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, owner: DictConnection, producer: Producer
) -> None:
    job_id = await _ended(http, owner, producer, "chat")

    gone = await client.chat.completions.delete(f"chatcmpl-{job_id.hex}")

    assert (gone.object, gone.deleted) == ("chat.completion.deleted", True)
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.delete(f"chatcmpl-{job_id.hex}")


async def test_a_waiting_job_is_cancelled_and_deleted(
    http: httpx.AsyncClient, owner: DictConnection
) -> None:
    made = (await http.post("/v1/jobs", json={"model": "tiny", "prompt": CANARY})).json()

    assert (await http.delete(f"/v1/jobs/{made['id']}")).status_code == 200

    assert found_in_postgres(owner, CANARY) == []
    row = owner.execute("SELECT status FROM jobs").fetchone()
    assert row == {"status": "cancelled"}


async def test_another_tenants_job_is_not_deleted(
    http: httpx.AsyncClient, owner: DictConnection, other_tenant: Tenant
) -> None:
    made = (await http.post("/v1/jobs", json={"model": "tiny", "prompt": "x"})).json()

    answer = await http.delete(f"/v1/jobs/{made['id']}", headers=other_tenant.headers)

    assert answer.status_code == 404
    assert owner.execute("SELECT status FROM jobs").fetchone() == {"status": "queued"}


@pytest.mark.parametrize("dialect", ["chat", "completion", "response"])
async def test_what_is_not_to_be_stored_is_hidden_once_it_is_over_and_then_deleted(
    http: httpx.AsyncClient,
    owner: DictConnection,
    producer: Producer,
    purge: Callable[[], None],
    dialect: str,
) -> None:
    job_id = await _ended(http, owner, producer, dialect, store=False)
    path, body, prefix, _ = DIALECTS[dialect]

    for url in (f"/v1/jobs/job_{job_id.hex}", f"{path}/{prefix}{job_id.hex}"):
        assert (await http.get(url)).status_code == 404
    assert (await http.get("/v1/jobs")).json()["data"] == []
    assert (await http.post(f"/v1/jobs/job_{job_id.hex}/cancel")).status_code == 404
    stream = await http.get(f"/v1/jobs/job_{job_id.hex}/events")  # it may have broken off
    assert CANARY in stream.text
    again = await http.post(
        path,
        json={"model": "tiny", **body, "store": False},
        headers={"Idempotency-Key": f"{CANARY}-{dialect}"},
    )
    assert CANARY in again.text

    purge()

    assert found_in_postgres(owner, CANARY) == []
    assert found_in_redis(producer.redis, CANARY) == []
    assert (await http.get(f"/v1/jobs/job_{job_id.hex}/events")).status_code == 404


async def test_a_deleted_file_leaves_neither_contents_nor_name(
    http: httpx.AsyncClient,
    owner: DictConnection,
    database: DatabaseUrls,
    files_folder: Path,
) -> None:
    form = {"file": (f"{CANARY}.txt", CANARY.encode())}
    made = (await http.post("/v1/files", files=form, data={"purpose": "user_data"})).json()
    assert found_on_disk(files_folder, CANARY)

    assert (await http.delete(f"/v1/files/{made['id']}")).json()["deleted"] is True
    with connect(database.worker, application_name="test") as worker:
        FileSweeper().step(worker)

    assert found_on_disk(files_folder, CANARY) == []
    assert found_in_postgres(owner, CANARY) == []


async def test_a_kill_between_a_streams_end_and_its_rows_leaves_nothing_to_find(
    http: httpx.AsyncClient, owner: DictConnection, producer: Producer, purge: Callable[[], None]
) -> None:
    """Redis was away: maintenance finds the stream by what is left of the row."""
    job_id = await _ended(http, owner, producer, "job")
    keys = list(producer.redis.scan_iter("stream:*"))
    dumped = {key: producer.redis.dump(key) or b"" for key in keys}
    await http.delete(f"/v1/jobs/job_{job_id.hex}")
    for key, value in dumped.items():
        producer.redis.restore(key, 0, value, replace=True)
    assert found_in_redis(producer.redis, CANARY)

    purge()

    assert found_in_redis(producer.redis, CANARY) == []


def _batch(owner: DictConnection, tenant_id: UUID, status: str, job_id: UUID) -> str:
    row = owner.execute(
        "INSERT INTO batches (id, tenant_id, api_key_id, endpoint, completion_window,"
        " service_tier, input_file_id, status, metadata, expires_at) VALUES (gen_random_uuid(), %s,"
        " 'k', '/v1/jobs', '24h', 'batch', gen_random_uuid(), %s, '{\"a\": \"" + CANARY + "\"}',"
        " now() + interval '1 day') RETURNING id",
        (tenant_id, status),
    ).fetchone()
    assert row is not None
    owner.execute("UPDATE jobs SET batch_id = %s WHERE id = %s", (row["id"], job_id))
    return f"batch_{row['id'].hex}"


async def test_a_deleted_batch_takes_its_jobs_along_once_it_is_over(
    http: httpx.AsyncClient,
    owner: DictConnection,
    producer: Producer,
    purge: Callable[[], None],
    tenant: Tenant,
) -> None:
    job_id = await _ended(http, owner, producer, "chat")
    batch_id = _batch(owner, tenant.id, "in_progress", job_id)
    assert (await http.delete(f"/v1/jobs/job_{job_id.hex}")).status_code == 400

    gone = await http.delete(f"/v1/batches/{batch_id}")

    assert gone.json() == {"id": batch_id, "object": "batch", "deleted": True}
    assert (await http.get(f"/v1/batches/{batch_id}")).status_code == 404
    assert (await http.post(f"/v1/batches/{batch_id}/cancel")).status_code == 404
    assert (await http.get("/v1/batches")).json()["data"] == []
    purge()
    assert owner.execute("SELECT status FROM batches").fetchone() == {"status": "cancelling"}
    owner.execute("UPDATE batches SET status = 'cancelled'")  # as its driver ends it
    purge()
    assert found_in_postgres(owner, CANARY) == []
    assert found_in_redis(producer.redis, CANARY) == []
    assert owner.execute("SELECT 1 FROM batches").fetchone() is None


async def test_a_job_is_gone_when_its_result_is_kept_no_longer(
    http: httpx.AsyncClient, owner: DictConnection, producer: Producer
) -> None:
    job_id = await _ended(http, owner, producer, "response")
    owner.execute("UPDATE jobs SET finished_at = now() - interval '31 days'")

    for url in _urls(job_id):
        assert (await http.get(url)).status_code == 404, url
    assert (await http.get("/v1/jobs")).json()["data"] == []
    body = {"model": "tiny", "input": "x", "previous_response_id": f"resp_{job_id.hex}"}
    answer = await http.post("/v1/responses", json=body)
    assert answer.json()["error"]["code"] == "previous_response_not_found"


async def test_a_response_whose_request_is_gone_is_shown_without_its_input(
    http: httpx.AsyncClient, owner: DictConnection, producer: Producer
) -> None:
    job_id = await _ended(http, owner, producer, "response")
    owner.execute("DELETE FROM job_payloads")

    shown = await http.get(f"/v1/responses/resp_{job_id.hex}")
    items = await http.get(f"/v1/responses/resp_{job_id.hex}/input_items")

    assert CANARY in shown.text
    assert items.status_code == 404
