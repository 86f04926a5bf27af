from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from psycopg import OperationalError
from starlette.types import Message, Receive, Scope, Send

from api import errors
from api.middleware import RequestMiddleware

SECRET = "sesame-open"


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    errors.install(app)
    app.add_middleware(RequestMiddleware)

    @app.get("/bug")
    async def bug() -> None:
        raise RuntimeError(SECRET)

    @app.get("/database")
    async def database() -> None:
        raise OperationalError(SECRET)

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def test_a_bug_is_answered_without_detail_and_logged(
    client: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = await client.get("/bug")

    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "server_error"
    assert answer.headers["x-request-id"]
    assert SECRET not in answer.text
    assert "request_failed" in capsys.readouterr().out


async def test_postgres_away_is_unavailable_not_broken(client: httpx.AsyncClient) -> None:
    answer = await client.get("/database")

    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "service_unavailable"
    assert answer.headers["retry-after"] == "1"
    assert SECRET not in answer.text


async def test_a_failure_after_the_start_sends_no_second_answer() -> None:
    async def begin_and_fail(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError(SECRET)

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": "/"}
    await RequestMiddleware(begin_and_fail)(scope, receive, send)

    assert [message["type"] for message in sent] == ["http.response.start"]
