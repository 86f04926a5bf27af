"""How many batches, of how many bytes, a tenant may have that are not over."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from cli.stack.database import DatabaseUrls
from store.pools import DictConnection, connect
from tests.integration.api.conftest import Tenant
from tests.support.waiting import until

BATCHES_PER_H = 4
FILES_QUOTA_BYTES = 1 << 20

_LINE = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/completions",
    "body": {"model": "tiny", "prompt": "hello"},
}
_DATA = json.dumps(_LINE).encode() + b"\n"


@pytest.fixture
def environment(environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for two batches at a time, and for the bytes of three."""
    monkeypatch.setenv("MILLRACE_MAX_BATCHES", "2")
    monkeypatch.setenv("MILLRACE_MAX_BATCH_BYTES", str(3 * len(_DATA)))
    monkeypatch.setenv("MILLRACE_MAX_BATCHES_PER_H", str(BATCHES_PER_H))
    monkeypatch.setenv("MILLRACE_FILES_QUOTA_BYTES", str(FILES_QUOTA_BYTES))


async def _upload(
    http: httpx.AsyncClient, data: bytes = _DATA, *, headers: dict[str, str] | None = None
) -> str:
    answer = await http.post(
        "/v1/files",
        files={"file": ("in.jsonl", data)},
        data={"purpose": "batch"},
        headers=headers,
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def _create(
    http: httpx.AsyncClient, file_id: str, *, headers: dict[str, str] | None = None
) -> httpx.Response:
    body = {
        "input_file_id": file_id,
        "endpoint": "/v1/completions",
        "completion_window": "24h",
    }
    return await http.post("/v1/batches", json=body, headers=headers)


def _assert_refused(answer: httpx.Response, message: str) -> None:
    assert answer.status_code == 429
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json() == {
        "error": {
            "message": message,
            "type": "insufficient_quota",
            "param": "input_file_id",
            "code": "batch_quota_exceeded",
        }
    }


def _code(answer: httpx.Response, code: str) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, code)


def _num_batches(owner: DictConnection) -> int:
    row = owner.execute("SELECT count(*) AS num FROM batches").fetchone()
    assert row is not None
    return int(row["num"])


async def test_a_batch_too_many_is_refused_until_one_ends(
    http: httpx.AsyncClient, owner: DictConnection
) -> None:
    file_id = await _upload(http)
    first = (await _create(http, file_id)).json()["id"]
    assert (await _create(http, file_id)).status_code == 200

    _assert_refused(
        await _create(http, file_id),
        "You have 2 batches that are not over, and may have 2. Wait for one to end, or cancel one.",
    )

    assert _num_batches(owner) == 2
    owner.execute(
        "UPDATE batches SET status = 'completed' WHERE id = %s", (first.removeprefix("batch_"),)
    )
    assert (await _create(http, file_id)).status_code == 200


async def test_a_batch_whose_file_is_too_large_beside_the_others_is_refused(
    http: httpx.AsyncClient, owner: DictConnection
) -> None:
    one, three = await _upload(http), await _upload(http, 3 * _DATA)
    assert (await _create(http, one)).status_code == 200

    _assert_refused(
        await _create(http, three),
        f"Your batches that are not over take {len(_DATA)} bytes of the {3 * len(_DATA)} they may"
        f" take, and this one has {3 * len(_DATA)}. Wait for one to end, or cancel one.",
    )

    owner.execute("UPDATE batches SET status = 'failed'")
    assert (await _create(http, three)).status_code == 200  # exactly what there is room for


async def test_another_tenants_batches_take_no_room(
    http: httpx.AsyncClient, other_tenant: Tenant
) -> None:
    file_id = await _upload(http)
    for _ in range(2):
        await _create(http, file_id)
    assert (await _create(http, file_id)).status_code == 429

    theirs = await _upload(http, headers=other_tenant.headers)
    answer = await _create(http, theirs, headers=other_tenant.headers)

    assert answer.status_code == 200


async def test_batches_that_are_cancelled_at_once_are_bounded_by_the_hour(
    http: httpx.AsyncClient, owner: DictConnection, other_tenant: Tenant
) -> None:
    file_id = await _upload(http)
    for _ in range(BATCHES_PER_H):
        assert (await _create(http, file_id)).status_code == 200
        owner.execute("UPDATE batches SET status = 'cancelled'")

    refused = await _create(http, file_id)
    theirs = await _upload(http, headers=other_tenant.headers)
    answer = await _create(http, theirs, headers=other_tenant.headers)

    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (429, "rate_limit_exceeded")
    assert f"you may make {BATCHES_PER_H} batches an hour" in error["message"]
    assert int(refused.headers["retry-after"]) <= 3_600 / BATCHES_PER_H
    assert _num_batches(owner) == BATCHES_PER_H + 1
    assert answer.status_code == 200


async def test_batches_refused_for_their_number_do_not_count_as_made(
    http: httpx.AsyncClient, owner: DictConnection
) -> None:
    file_id = await _upload(http)
    for _ in range(2):
        await _create(http, file_id)
    for _ in range(BATCHES_PER_H):
        _code(await _create(http, file_id), "batch_quota_exceeded")

    owner.execute("UPDATE batches SET status = 'cancelled'")

    assert (await _create(http, file_id)).status_code == 200


async def test_a_tenant_whose_files_take_all_its_storage_makes_no_batch(
    http: httpx.AsyncClient, owner: DictConnection
) -> None:
    file_id = await _upload(http)
    # As error files of batches do, which ask for no room.
    owner.execute("UPDATE files SET num_bytes = %s", (FILES_QUOTA_BYTES,))

    _code(await _create(http, file_id), "storage_quota_exceeded")

    assert _num_batches(owner) == 0
    owner.execute("UPDATE files SET num_bytes = %s", (len(_DATA),))
    assert (await _create(http, file_id)).status_code == 200


@pytest.mark.parametrize("column", ["max_batches", "max_batch_bytes"])
async def test_a_tenants_own_numbers_go_first(
    http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant, column: str
) -> None:
    file_id = await _upload(http)
    owner.execute(f"UPDATE tenants SET {column} = 0 WHERE id = %s", (tenant.id,))

    answer = await _create(http, file_id)

    assert answer.json()["error"]["code"] == "batch_quota_exceeded"
    owner.execute(f"UPDATE tenants SET {column} = 1000000 WHERE id = %s", (tenant.id,))
    assert (await _create(http, file_id)).status_code == 200


async def test_two_at_once_do_not_both_take_the_last_place(
    http: httpx.AsyncClient, owner: DictConnection, database: DatabaseUrls, tenant: Tenant
) -> None:
    file_id = await _upload(http)
    assert (await _create(http, file_id)).status_code == 200

    with connect(database.owner, application_name="test") as other, other.transaction():
        # A batch refers to its tenant: it is counted and inserted, then waits for this row.
        other.execute("SELECT FROM tenants WHERE id = %s FOR UPDATE", (tenant.id,))
        both = [asyncio.create_task(_create(http, file_id)) for _ in range(2)]
        await until(lambda: _num_waiting(owner) == 2)
    answers = await asyncio.gather(*both)

    assert sorted(answer.status_code for answer in answers) == [200, 429]
    assert _num_batches(owner) == 2


def _num_waiting(owner: DictConnection) -> int:
    row = owner.execute(
        "SELECT count(DISTINCT pid) AS num FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE NOT granted AND datname = current_database()"
    ).fetchone()
    assert row is not None
    return int(row["num"])
