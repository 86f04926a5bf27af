"""What an endpoint, or who answers for its name, can't do to the sender."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from tasks.webhook_urls import UrlPolicy
from tests.support.webhook_receiver import receiver
from workers.maintenance.webhooks.http import MAX_ANSWER_BYTES, Answer, DeliveryError, WebhookHttp
from workers.maintenance.webhooks.names import MAX_OF_TENANT, Names

TENANT = uuid4()

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def _server(serve: Serve) -> AsyncIterator[str]:
    """Answers each connection by `serve`, which ends when the client goes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
            await serve(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()


def _http(
    policy: UrlPolicy | None = None, names: Names | None = None, **more: float
) -> WebhookHttp:
    return WebhookHttp(policy or UrlPolicy(allow_private=True), names or Names(), **more)


async def _post(http: WebhookHttp, url: str) -> Answer:
    return await http.post(TENANT, url, {"content-type": "application/json"}, b"{}")


async def test_the_address_that_was_checked_is_dialled() -> None:
    """The name itself leads nowhere: only who keeps what was looked up once gets there."""
    with receiver() as server:
        http = _http(names=Names(lambda _host, _port: ["127.0.0.1"]))
        url = server.url.replace("127.0.0.1", "rebound.invalid")

        answer = await _post(http, url)

        assert answer.status_code == 200
        assert server.received[0].headers["host"].startswith("rebound.invalid")


async def test_one_private_address_among_several_is_enough_to_refuse() -> None:
    dialled = _http(UrlPolicy(), Names(lambda _host, _port: ["8.8.8.8", "10.0.0.1"]))

    with pytest.raises(DeliveryError, match="public"):
        await _post(dialled, "https://example.com/")


async def test_of_an_endless_answer_little_is_read() -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"x" * MAX_ANSWER_BYTES)
            await writer.drain()

    async with _server(serve) as url:
        answer = await _post(_http(), url)

    assert answer.status_code == 200


async def test_an_answer_that_trickles_is_given_up() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with _server(serve) as url:
        with pytest.raises(DeliveryError, match="No answer within"):
            await _post(_http(timeout_s=0.3), url)


@pytest.mark.parametrize("error", [UnicodeError("label too long"), OSError("no such host")])
async def test_a_name_that_can_not_be_looked_up_is_a_failure_like_others(error: Exception) -> None:
    def resolve(_host: str, _port: int) -> list[str]:
        raise error

    with pytest.raises(DeliveryError):
        await _post(_http(names=Names(resolve)), "http://example.com/")


async def test_slow_names_of_a_tenant_hold_few_threads_and_nobody_else() -> None:
    answers, asked = threading.Event(), []

    def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        if host == "slow.example":
            answers.wait(30)
        return ["127.0.0.1"]

    names = Names(resolve)
    lookups = [
        asyncio.create_task(names.addresses(TENANT, "slow.example", 443))
        for _ in range(3 * MAX_OF_TENANT)
    ]
    try:
        found = await asyncio.wait_for(names.addresses(uuid4(), "quick.example", 443), 10)

        assert found == ["127.0.0.1"]
        assert asked.count("slow.example") == MAX_OF_TENANT
    finally:
        answers.set()
    assert await asyncio.gather(*lookups) == [["127.0.0.1"]] * len(lookups)


async def test_a_lookup_that_nobody_waits_for_counts_until_it_ends() -> None:
    answers, asked = threading.Event(), []

    def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        answers.wait(30)
        return ["127.0.0.1"]

    names = Names(resolve)
    try:
        for _ in range(2 * MAX_OF_TENANT):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(names.addresses(TENANT, "slow.example", 443), 0.02)
        assert len(asked) == MAX_OF_TENANT
    finally:
        answers.set()
    assert await asyncio.wait_for(names.addresses(TENANT, "slow.example", 443), 10)
