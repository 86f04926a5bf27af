"""Whatever a client sends: 4xx in OpenAI's shape, nothing enqueued, nothing reserved."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from store.pools import DictConnection
from tests.integration.api.conftest import Tenant, new_tenant

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
SECRET = "sesame-open"  # in prompts; must never come back


def _chat(**fields: Any) -> bytes:
    return json.dumps(CHAT | fields).encode()


def _content(text: str) -> bytes:
    return b'{"model":"tiny","messages":[{"role":"user","content":"%b"}]}' % text.encode()


BAD_BODIES: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 400, "invalid_request"),
    "not JSON": (b"{", 400, "invalid_request"),
    "not an object": (b"[]", 400, "invalid_request"),
    "byte order mark": (b"\xef\xbb\xbf" + _chat(), 400, "invalid_request"),
    "invalid UTF-8": (b'{"model":"\xff"}', 400, "invalid_request"),
    "NUL character": (_content("a\\u0000b"), 400, "invalid_request"),
    "NUL in a key": (b'{"a\\u0000":1}', 400, "invalid_request"),
    "lone surrogate": (_content("\\ud800"), 400, "invalid_request"),
    "NaN": (b'{"model":"tiny","prompt":"a","temperature":NaN}', 400, "invalid_request"),
    "Infinity": (b'{"model":"tiny","prompt":"a","top_p":Infinity}', 400, "invalid_request"),
    "1e999": (b'{"model":"tiny","prompt":"a","top_p":1e999}', 400, "invalid_request"),
    "5,000 digits": (b'{"model":"tiny","seed":' + b"9" * 5000 + b"}", 400, "invalid_request"),
    "25 digits": (_chat(seed=10**24), 400, "invalid_request"),
    "seed beyond 64 bits": (_chat(seed=2**63), 400, "invalid_request"),
    "deep": (b'{"a":' + b"[" * 100_000, 400, "invalid_request"),
    "33 levels": (b'{"a":' * 33 + b"1" + b"}" * 33, 400, "invalid_request"),
    "many values": (b'{"a":[' + b"1," * 60_000 + b"1]}", 400, "invalid_request"),
    "unknown field": (_chat(tenant_id="x"), 400, "unsupported_parameter"),
    "unknown field in a message": (
        b'{"model":"tiny","messages":[{"role":"user","content":"a","x":1}]}',
        400,
        "unsupported_parameter",
    ),
    "no model": (b'{"prompt":"a"}', 400, "invalid_request"),
    "unknown model": (_chat(model="gpt-9"), 404, "model_not_found"),
    "model of another type": (_chat(model=7), 400, "invalid_request"),
    "no prompt": (b'{"model":"tiny"}', 400, "invalid_request"),
    "empty prompt": (b'{"model":"tiny","prompt":""}', 400, "invalid_request"),
    "both prompts": (_chat(prompt="a"), 400, "invalid_request"),
    "empty messages": (_chat(messages=[]), 400, "invalid_request"),
    "unknown role": (
        _chat(messages=[{"role": SECRET, "content": "a"}]),
        400,
        "invalid_request",
    ),
    "role the template refuses": (
        _chat(messages=[{"role": "developer", "content": SECRET}]),
        400,
        "invalid_prompt",
    ),
    "image": (
        _chat(messages=[{"role": "user", "content": [{"type": "image_url", "text": SECRET}]}]),
        400,
        "invalid_request",
    ),
    "hot": (_chat(temperature=2.1), 400, "invalid_request"),
    "boolean for a number": (_chat(temperature=True), 400, "invalid_request"),
    "text for a number": (_chat(max_tokens="7"), 400, "invalid_request"),
    "no tokens": (_chat(max_tokens=0), 400, "invalid_request"),
    "two limits": (_chat(max_tokens=1, max_output_tokens=1), 400, "invalid_request"),
    "more than the model gives": (_chat(max_tokens=129), 400, "invalid_request"),
    "more than the context": (
        b'{"model":"tiny","max_tokens":128,"prompt":"%b"}' % (b"xyz " * 60),
        400,
        "context_length_exceeded",
    ),
    "prompt beyond the context": (_content("q" * 3_000), 400, "context_length_exceeded"),
    "prompt far beyond it": (_content("q" * 900_000), 400, "context_length_exceeded"),
    "five stops": (_chat(stop=list("abcde")), 400, "invalid_request"),
    "long stop": (_chat(stop=SECRET * 10), 400, "invalid_request"),
    "much bias": (_chat(logit_bias={str(i): 1 for i in range(301)}), 400, "invalid_request"),
    "bias beyond the vocabulary": (_chat(logit_bias={"99999": 1}), 400, "invalid_request"),
    "much metadata": (_chat(metadata={str(i): "" for i in range(17)}), 400, "invalid_request"),
    "long metadata": (_chat(metadata={"a": "b" * 513}), 400, "invalid_request"),
    "n": (_chat(n=2), 400, "unsupported_parameter"),
    "logprobs": (_chat(logprobs=True), 400, "unsupported_parameter"),
    "tools": (_chat(tools=[{"type": "function"}]), 400, "unsupported_parameter"),
    "response format": (
        _chat(response_format={"type": "json_object"}),
        400,
        "unsupported_parameter",
    ),
    "stream": (_chat(stream=True), 400, "unsupported_parameter"),
    "tier": (_chat(service_tier="gold"), 400, "invalid_request"),
    "deadline": (_chat(deadline_s=0), 400, "invalid_request"),
    "too large": (_content("q" * (1 << 20)), 413, "request_too_large"),
    "10 MB": (_content("q" * 10_000_000), 413, "request_too_large"),
}


async def test_bad_bodies_are_refused_and_leave_no_trace(
    http: httpx.AsyncClient, owner: DictConnection
) -> None:
    answers = {
        name: await http.post("/v1/jobs", content=body) for name, (body, _, _) in BAD_BODIES.items()
    }

    assert {name: _outcome(answer) for name, answer in answers.items()} == {
        name: (status, code) for name, (_, status, code) in BAD_BODIES.items()
    }
    for answer in answers.values():
        _assert_error(answer, answer.json()["error"]["code"])
    _assert_nothing_happened(owner)


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


async def test_compressed_body_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/jobs", content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})

    assert answer.status_code == 400
    _assert_error(answer, "invalid_request")


@pytest.mark.parametrize("key", ['""', "x" * 256, "a\tb"])
async def test_bad_idempotency_key_is_refused(http: httpx.AsyncClient, key: str) -> None:
    answer = await http.post("/v1/jobs", content=_chat(), headers={"Idempotency-Key": key})

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
    answer = await http.post(f"/v1/jobs?wait_s={wait_s}", content=_chat())

    assert answer.status_code == 400
    _assert_error(answer, "invalid_request", param="wait_s")
    _assert_nothing_happened(owner)


@pytest.mark.parametrize("last", ["-1", "x", "9" * 30, "1e3"])
async def test_bad_event_id_is_refused(http: httpx.AsyncClient, last: str) -> None:
    created = (await http.post("/v1/jobs", content=_chat())).json()

    answer = await http.get(created["events_url"], headers={"Last-Event-ID": last})

    assert answer.status_code == 400
    _assert_error(answer, "invalid_request", param="Last-Event-ID")


async def test_unknown_url_and_method_have_the_same_shape(http: httpx.AsyncClient) -> None:
    unknown = await http.get("/v1/nothing")
    method = await http.delete("/v1/models")

    assert (unknown.status_code, method.status_code) == (404, 405)
    _assert_error(unknown, "unknown_url")
    _assert_error(method, "method_not_allowed")


async def test_another_tenants_job_is_answered_like_none(
    http: httpx.AsyncClient, api_url: str, other_tenant: Tenant
) -> None:
    job_id = (await http.post("/v1/jobs", content=_chat())).json()["id"]
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
        answer = await client.post("/v1/jobs", content=_chat())

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
