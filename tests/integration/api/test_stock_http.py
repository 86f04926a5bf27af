"""What any HTTP client may expect of every route, whatever it is for (RFC 9110)."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import AsyncIterator
from uuid import uuid4

import httpx
import pytest
from fastapi.routing import APIRoute

from api.app import app
from api.settings import MAX_BODY_BYTES
from store.pools import DictConnection
from tests.integration.api.conftest import Tenant, serve_api
from tests.integration.api.producer import Producer, RunningJob

JOB = b'{"model": "tiny", "prompt": "hello", "max_tokens": 4}'
PAGE = "https://chat.example.com"
ROUTES: list[APIRoute] = app.state.routes


def _url(route: APIRoute) -> str:
    job_id = f"job_{uuid4().hex}"
    return route.path.replace(":path}", "}").format(**dict.fromkeys(route.param_convertors, job_id))


def _methods(route: APIRoute) -> set[str]:
    return route.methods or set()


def _json_routes() -> list[APIRoute]:
    def is_json(route: APIRoute) -> bool:
        body = (route.openapi_extra or {}).get("requestBody", {})
        return "application/json" in body.get("content", {})

    return [route for route in ROUTES if is_json(route)]


# The type of a body -------------------------------------------------------------------------------


async def test_json_has_to_be_called_json_on_every_route(
    http: httpx.AsyncClient, owner: DictConnection
) -> None:
    assert len(_json_routes()) > 9
    for route in _json_routes():
        for said in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/jsonl",
            "json",
        ):
            headers = {"Content-Type": said}
            answer = await http.post(_url(route), content=JOB, headers=headers)

            error = answer.json()["error"]
            found = (answer.status_code, error["code"], answer.headers["accept"])
            assert found == (415, "unsupported_media_type", "application/json"), route.path
            assert "Content-Type: application/json" in error["message"]
    row = owner.execute("SELECT count(*) AS made FROM jobs").fetchone()
    assert row == {"made": 0}


@pytest.mark.parametrize(
    "said",
    [
        "application/json",
        "Application/JSON ; charset=latin-1; x=y",
        "application/vnd.api+json",
        "application/problem+json;v=1",
        None,  # as some clients leave it out, Java's own for one
    ],
)
async def test_json_by_any_of_its_names_is_read(http: httpx.AsyncClient, said: str | None) -> None:
    headers = {} if said is None else {"Content-Type": said}

    assert (await http.post("/v1/jobs", content=JOB, headers=headers)).status_code == 202


@pytest.mark.parametrize("said", [None, "application/json", "multipart/mixed; boundary=x"])
async def test_file_has_to_come_in_a_form(http: httpx.AsyncClient, said: str | None) -> None:
    headers = {} if said is None else {"Content-Type": said}
    answer = await http.post("/v1/files", content=b"--x--\r\n", headers=headers)

    assert (answer.status_code, answer.headers["accept"]) == (415, "multipart/form-data")


# Its coding ---------------------------------------------------------------------------------------


async def test_compressed_bodies_are_read(http: httpx.AsyncClient) -> None:
    ways = {
        "gzip": gzip.compress(JOB),
        "deflate": zlib.compress(JOB),
        "gzip, deflate": zlib.compress(gzip.compress(JOB)),
        "identity": JOB,
    }
    for coding, body in ways.items():
        answer = await http.post("/v1/jobs", content=body, headers={"Content-Encoding": coding})
        assert answer.status_code == 202, coding


async def test_compressed_body_is_bounded_by_what_it_holds(http: httpx.AsyncClient) -> None:
    async def refusal(body: bytes, coding: str = "gzip") -> tuple[int, str]:
        answer = await http.post("/v1/jobs", content=body, headers={"Content-Encoding": coding})
        return answer.status_code, answer.json()["error"]["code"]

    bomb = gzip.compress(b'{"prompt": "' + bytes(MAX_BODY_BYTES) + b'"}')
    assert await refusal(bomb) == (413, "request_too_large")
    assert await refusal(gzip.compress(JOB)[:-9]) == (400, "invalid_request")
    assert await refusal(JOB) == (400, "invalid_request")
    assert await refusal(JOB, "br") == (415, "unsupported_media_type")


async def test_compressed_upload_is_stored_as_what_it_holds(http: httpx.AsyncClient) -> None:
    lines = b'{"custom_id": "a"}\n' * 50_000
    form = httpx.Request(
        "POST", "http://x", data={"purpose": "user_data"}, files={"file": ("in.jsonl", lines)}
    )
    headers = {"Content-Type": form.headers["content-type"], "Content-Encoding": "gzip"}
    packed = gzip.compress(form.read())

    stored = (await http.post("/v1/files", content=packed, headers=headers)).json()
    content = await http.get(f"/v1/files/{stored['id']}/content")
    broken = await http.post("/v1/files", content=packed[:-9], headers=headers)

    assert (stored["bytes"], content.content) == (len(lines), lines)
    assert broken.status_code == 400
    assert len((await http.get("/v1/files")).json()["data"]) == 1


# Methods ------------------------------------------------------------------------------------------


async def test_head_is_answered_as_get_is_but_for_the_body(http: httpx.AsyncClient) -> None:
    for route in ROUTES:
        if "GET" not in _methods(route):
            continue
        asked, told = await http.get(_url(route)), await http.head(_url(route))

        assert told.status_code == asked.status_code, route.path
        assert not told.content
        for name in ("content-type", "content-length", "allow"):
            assert told.headers.get(name) == asked.headers.get(name), route.path


async def test_head_of_a_stream_begins_none(
    http: httpx.AsyncClient, running: RunningJob, producer: Producer
) -> None:
    answer = await http.head(f"/v1/jobs/{running.id}/events")

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (await http.get("/livez")).status_code == 200  # on the same connection


async def test_head_of_a_file_says_how_long_all_of_it_is(http: httpx.AsyncClient) -> None:
    files = {"file": ("a.txt", b"0123456789")}
    made = (await http.post("/v1/files", data={"purpose": "user_data"}, files=files)).json()
    url = f"/v1/files/{made['id']}/content"
    answer = await http.head(url, headers={"Range": "bytes=2-4"})
    part = await http.get(url, headers={"Range": "bytes=2-4"})

    assert (answer.status_code, answer.headers["content-length"]) == (200, "10")
    assert (part.status_code, part.content) == (206, b"234")


async def test_options_names_what_a_url_takes_to_anybody(api_url: str) -> None:
    async with httpx.AsyncClient(base_url=api_url, timeout=30, trust_env=False) as stranger:
        for route in ROUTES:
            answer = await stranger.options(_url(route))

            allowed = set(answer.headers["allow"].split(", "))
            assert (answer.status_code, answer.content) == (204, b""), route.path
            assert allowed >= _methods(route) | {"OPTIONS"}
            assert ("HEAD" in allowed) == ("GET" in allowed)
        unknown = await stranger.options("/v1/nothing")
        wrong = await stranger.put("/v1/jobs")

    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_url")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD, OPTIONS, POST")


async def test_load_tools_find_out_without_a_key_whether_to_begin(api_url: str) -> None:
    async with httpx.AsyncClient(base_url=api_url, timeout=30, trust_env=False) as stranger:
        answers = {path: await stranger.get(path) for path in ("/health", "/ping", "/version")}

    assert (answers["/health"].status_code, answers["/health"].json()["status"]) == (
        503,
        "not_ready",
    )
    assert answers["/ping"].json() == {"status": "ok"}
    assert answers["/version"].json()["version"]


async def test_health_with_a_worker(http: httpx.AsyncClient, producer: Producer) -> None:
    answer = await http.get("/health")

    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


# Pages --------------------------------------------------------------------------------------------


@pytest.fixture
async def page(
    environment: None, catalog: None, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    """A browser that shows a page of an origin that may call."""
    monkeypatch.setenv("MILLRACE_CORS_ORIGINS", f"{PAGE}/, http://localhost:3000")
    headers = {**tenant.headers, "Origin": PAGE}
    async with (
        serve_api() as url,
        httpx.AsyncClient(base_url=url, headers=headers, timeout=30, trust_env=False) as client,
    ):
        yield client


async def test_page_may_ask_every_route_and_read_every_refusal(page: httpx.AsyncClient) -> None:
    answers = {
        404: await page.get("/v1/nothing"),
        405: await page.put("/v1/jobs"),
        415: await page.post("/v1/jobs", content=JOB, headers={"Content-Type": "text/plain"}),
        413: await page.post("/v1/jobs", content=bytes(MAX_BODY_BYTES + 1)),
        401: await page.get("/v1/models", headers={"Authorization": "Bearer no"}),
        400: await page.post("/v1/jobs", json={}),
        202: await page.post("/v1/jobs", content=JOB),
        200: await page.get("/v1/models"),
    }

    for status, answer in answers.items():
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        assert "retry-after" in answer.headers["access-control-expose-headers"]
        assert answer.headers["vary"] == "Origin"


async def test_page_reads_a_stream(page: httpx.AsyncClient, producer: Producer) -> None:
    job = (await page.post("/v1/jobs", content=JOB)).json()
    async with page.stream("GET", job["events_url"]) as stream:
        first = await anext(stream.aiter_lines())

    assert stream.headers["access-control-allow-origin"] == PAGE
    assert first


async def test_browsers_question_is_answered_without_a_key(page: httpx.AsyncClient) -> None:
    asked = "authorization, content-type, x-stainless-lang, idempotency-key, last-event-id"
    del page.headers["authorization"]
    for route in ROUTES:
        for method in _methods(route):
            answer = await page.options(
                _url(route),
                headers={
                    "Access-Control-Request-Method": method,
                    "Access-Control-Request-Headers": asked,
                    "Access-Control-Request-Private-Network": "true",
                },
            )

            assert answer.status_code == 200, route.path
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert method in answer.headers["access-control-allow-methods"].split(", ")
            assert answer.headers["access-control-allow-headers"] == asked
            assert answer.headers["access-control-allow-private-network"] == "true"
            assert int(answer.headers["access-control-max-age"]) >= 600


async def test_page_of_another_origin_may_nothing(page: httpx.AsyncClient) -> None:
    headers = {"Origin": "https://elsewhere.example.com"}
    question = await page.options(
        "/v1/jobs", headers={**headers, "Access-Control-Request-Method": "POST"}
    )
    answer = await page.get("/v1/models", headers=headers)

    assert "access-control-allow-origin" not in question.headers
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["vary"] == "Origin"


async def test_without_the_setting_no_page_may_call(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/models", headers={"Origin": PAGE})

    assert not [name for name in answer.headers if name.startswith("access-control")]
