"""Whatever a client sends: 4xx in OpenAI's shape, nothing enqueued, nothing reserved."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from store.pools import DictConnection
from tests.integration.api.bad_bodies import BAD_BODIES, SECRET, chat
from tests.integration.api.conftest import Tenant, new_tenant
from tests.integration.api.producer import Producer


async def test_bad_bodies_are_refused_and_leave_no_trace(
    http: httpx.AsyncClient, owner: DictConnection, producer: Producer
) -> None:
    keys_before = set(producer.redis.keys())

    answers = {
        name: await http.post("/v1/jobs", content=body, headers={"Idempotency-Key": "k"})
        for name, (body, _, _) in BAD_BODIES.items()
    }

    assert {name: _outcome(answer) for name, answer in answers.items()} == {
        name: (status, code) for name, (_, status, code) in BAD_BODIES.items()
    }
    for answer in answers.values():
        _assert_error(answer, answer.json()["error"]["code"])
    _assert_nothing_happened(owner)
    assert set(producer.redis.keys()) == keys_before


def _outcome(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_10_mb_in_chunks_without_a_length_is_refused(
    http: httpx.AsyncClient, owner: DictConnection
) -> None:
    async def chunks() -> Any:
        for _ in range(160):
            yield b" " * 65_536

    answer = await http.post("/v1/jobs", content=chunks())

    assert answer.status_code == 413
    _assert_error(answer, "request_too_large")
    _assert_nothing_happened(owner)


@pytest.mark.parametrize("key", ['""', "x" * 256, "a\tb"])
async def test_bad_idempotency_key_is_refused(http: httpx.AsyncClient, key: str) -> None:
    answer = await http.post("/v1/jobs", content=chat(), headers={"Idempotency-Key": key})

    assert answer.status_code == 400
    _assert_error(answer, "invalid_request", param="Idempotency-Key")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs?limit=0",
        "/v1/jobs?limit=101",
        "/v1/jobs?status=sleeping",
        "/v1/jobs?after=nonsense",
        "/v1/usage?start_time=-1",
        "/v1/usage?start_time=2&end_time=1",
        "/v1/usage?end_time=99999999999999999999",
    ],
)
async def test_bad_query_is_refused(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(path)

    assert answer.status_code == 400
    _assert_error(answer, "invalid_request")


@pytest.mark.parametrize("wait_s", ["-1", "61", "nan", "inf", "soon"])
async def test_bad_wait_is_refused(
    http: httpx.AsyncClient, owner: DictConnection, wait_s: str
) -> None:
    answer = await http.post(f"/v1/jobs?wait_s={wait_s}", content=chat())

    assert answer.status_code == 400
    _assert_error(answer, "invalid_request", param="wait_s")
    _assert_nothing_happened(owner)


@pytest.mark.parametrize("last", ["-1", "x", "9" * 30, "1e3"])
async def test_bad_event_id_is_refused(http: httpx.AsyncClient, last: str) -> None:
    created = (await http.post("/v1/jobs", content=chat())).json()

    answer = await http.get(created["events_url"], headers={"Last-Event-ID": last})

    assert answer.status_code == 400
    _assert_error(answer, "invalid_request", param="Last-Event-ID")


async def test_unknown_url_and_method_have_the_same_shape(http: httpx.AsyncClient) -> None:
    unknown = await http.get("/v1/nothing")
    method = await http.delete("/v1/models")

    assert (unknown.status_code, method.status_code) == (404, 405)
    _assert_error(unknown, "unknown_url")
    _assert_error(method, "method_not_allowed")


async def test_allow_names_all_methods_of_a_url(http: httpx.AsyncClient) -> None:
    created = (await http.post("/v1/jobs", content=chat())).json()

    jobs = await http.delete("/v1/jobs")
    job = await http.put(f"/v1/jobs/{created['id']}")

    assert jobs.headers["Allow"] == "GET, HEAD, OPTIONS, POST"
    assert job.headers["Allow"] == "DELETE, GET, HEAD, OPTIONS"


async def test_another_tenants_job_is_answered_like_none(
    http: httpx.AsyncClient, api_url: str, other_tenant: Tenant
) -> None:
    job_id = (await http.post("/v1/jobs", content=chat())).json()["id"]
    missing = "job_" + "0" * 32

    async with httpx.AsyncClient(base_url=api_url, headers=other_tenant.headers) as other:
        for method, suffix in (("GET", ""), ("GET", "/events"), ("POST", "/cancel")):
            theirs = await other.request(method, f"/v1/jobs/{job_id}{suffix}")
            none = await other.request(method, f"/v1/jobs/{missing}{suffix}")
            nonsense = await other.request(method, f"/v1/jobs/x{suffix}")
            assert theirs.status_code == none.status_code == nonsense.status_code == 404
            assert theirs.content == none.content == nonsense.content
            _assert_error(theirs, "job_not_found")
        assert (await other.get("/v1/jobs")).json()["data"] == []
        assert (await other.get(f"/v1/jobs?after={job_id}")).json()["data"] == []

    assert (await http.get(f"/v1/jobs/{job_id}")).json()["status"] == "queued"


async def test_without_credit_nothing_is_enqueued(api_url: str, owner: DictConnection) -> None:
    poor = new_tenant(owner, "poor", credit_micros=1)

    async with httpx.AsyncClient(base_url=api_url, headers=poor.headers) as client:
        answer = await client.post("/v1/jobs", content=chat())

    assert answer.status_code == 429
    assert answer.headers["x-should-retry"] == "false"
    _assert_error(answer, "insufficient_quota")
    _assert_nothing_happened(owner)


def _assert_error(answer: httpx.Response, code: str, *, param: str | None = None) -> None:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert isinstance(error["message"], str)
    assert SECRET not in answer.text
    assert answer.headers["x-request-id"]
    if param is not None:
        assert error["param"] == param


def _assert_nothing_happened(owner: DictConnection) -> None:
    row = owner.execute(
        "SELECT (SELECT count(*) FROM jobs) AS jobs,"
        " (SELECT count(*) FROM job_payloads) AS payloads,"
        " (SELECT count(*) FROM reservations) AS reservations,"
        " (SELECT count(*) FROM idempotency_keys) AS keys,"
        " (SELECT coalesce(sum(held_micros), 0) FROM accounts) AS held"
    ).fetchone()
    assert row is not None
    assert set(row.values()) == {0}
