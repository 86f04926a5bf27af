"""What a peer may send at once, and how many connections there may be."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from api.server.bounds import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED
from tests.support.bare_http import (
    code,
    get,
    post,
    serving,
    status,
)
from tests.support.waiting import until

# Large heads --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"x" * (2 * MAX_HEAD_BYTES),
        b"GET /livez HTTP/1.1\r\nX: " + b"x" * (2 * MAX_HEAD_BYTES),
        get("/livez", *["X: " + "x" * 1_000] * (MAX_HEAD_BYTES // 1_000 + 1)),
        get("/livez", *["X: y"] * MAX_HEADERS),
    ],
    ids=["url", "header", "together", "count"],
)
async def test_large_head_is_refused(sent: bytes) -> None:
    async with serving() as server:
        peer = await server.open()
        with contextlib.suppress(ConnectionError):
            for begin in range(0, len(sent), 16_384):
                await peer.send(sent[begin : begin + 16_384])
                await asyncio.sleep(0)

        answer = await peer.read_to_end()

        assert not answer or (status(answer), code(answer)) == (431, "headers_too_large")
        await until(lambda: not len(server.connections))
        assert not server.app.num_begun


async def test_head_of_allowed_size_is_served() -> None:
    async with serving() as server:
        peer = await server.open()
        await peer.send(get("/livez", "X: " + "x" * (MAX_HEAD_BYTES - 100)))
        assert (await peer.read_answer()).endswith(b"alive")

        await peer.send(get("/livez", *["X: y"] * (MAX_HEADERS - 1)))
        assert (await peer.read_answer()).endswith(b"alive")


async def test_trailers_are_bounded_as_headers_are() -> None:
    async with serving() as server:
        peer = await server.open()
        await peer.send(
            b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
        )
        with contextlib.suppress(ConnectionError):
            for _ in range(4 * MAX_HEAD_BYTES // 1_000):
                await peer.send(b"X: " + b"x" * 1_000 + b"\r\n")

        await until(lambda: server.app.num_ended == 1 and not len(server.connections))
        assert not server.app.bodies


async def test_body_in_many_small_chunks_is_taken() -> None:
    async with serving() as server:
        peer = await server.open()
        await peer.send(b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(40):
            await peer.send((b"10\r\n" + b"x" * 16 + b"\r\n") * 1_000)
        await peer.send(b"0\r\n\r\n")

        assert (await peer.read_answer()).endswith(b"640000")


async def test_requests_sent_ahead_are_answered_in_order_up_to_a_bound() -> None:
    async with serving() as server:
        peer = await server.open()
        await peer.send(get("/livez") * MAX_PIPELINED)
        answers = b""
        while answers.count(b"alive") < MAX_PIPELINED:
            answers += await peer.read()

        await peer.send(get("/livez") * 100 * MAX_PIPELINED)
        await until(lambda: not len(server.connections))
        assert server.app.num_begun <= 3 * MAX_PIPELINED


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
async def test_upgrade_is_ignored_and_the_connection_serves_on(protocol: str) -> None:
    upgrade = f"Connection: keep-alive, Upgrade\r\nUpgrade: {protocol}\r\n".encode()
    async with serving() as server:
        peer = await server.open()
        for head in (
            b"Content-Length: 11\r\n\r\nhello",
            b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n",
        ):
            await peer.send(b"POST /body HTTP/1.1\r\nHost: x\r\n" + upgrade + head)
            await peer.send(b" world" if b"Length" in head else b" world\r\n0\r\n\r\n")
            assert (await peer.read_answer()).endswith(b"11")

        await peer.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n" + upgrade + b"\r\n" + get("/livez"))
        answers = b""
        while answers.count(b"alive") < 2:
            answers += await peer.read()

        assert server.app.bodies == [b"hello world"] * 2


@pytest.mark.parametrize("behind", [b"GET / HTTP/1.1\r\nX: ", b"\x00noise\r\n"])
async def test_what_comes_behind_an_ignored_upgrade_is_bounded_too(behind: bytes) -> None:
    async with serving() as server:
        peer = await server.open()
        await peer.send(get("/livez", "Connection: Upgrade", "Upgrade: h2c"))
        assert (await peer.read_answer()).endswith(b"alive")
        with contextlib.suppress(ConnectionError):
            await peer.send(behind)
            for _ in range(2 * MAX_HEAD_BYTES // 1_024):
                await peer.send(b"x" * 1_024)
                await asyncio.sleep(0)

        answer = await peer.read_to_end()

        assert not answer or code(answer) in ("headers_too_large", "invalid_request")
        await until(lambda: not len(server.connections))


async def test_noise_behind_a_request_does_not_get_into_its_answer() -> None:
    async with serving() as server:
        peer = await server.open()
        await peer.send(get("/flood"))
        head = await peer.read()
        await peer.send(b"\x00\x01 no HTTP\r\n\r\n")

        rest = await peer.read_to_end()

        assert head.startswith(b"HTTP/1.1 200")
        assert b"HTTP/1.1" not in rest
        await until(lambda: not len(server.connections))


async def test_noise_is_answered_in_the_shape_of_other_errors() -> None:
    async with serving() as server:
        peer = await server.open()
        await peer.send(b"\x16\x03\x01 hello\r\n\r\n")

        answer = await peer.read_to_end()

        assert (status(answer), code(answer)) == (400, "invalid_request")


# Too many -----------------------------------------------------------------------------------------


async def test_many_who_send_noise_at_once_are_each_answered_and_not_written_down(
    capfd: pytest.CaptureFixture[str],
) -> None:
    noise = b"GET /livez HTTP/1.1\r\nno header\r\n\r\n"
    async with serving() as server:
        peers = [await server.open() for _ in range(200)]
        for peer in peers:
            await peer.send(noise + get("/livez"))

        answers = [await peer.read_to_end() for peer in peers]

        assert {(status(answer), code(answer)) for answer in answers} == {(400, "invalid_request")}
        await until(lambda: not len(server.connections))
        assert not server.app.num_begun
    assert "Invalid HTTP request" not in capfd.readouterr().err


async def test_half_sent_requests_make_room_for_whole_ones() -> None:
    async with serving(max_busy=10, spare=10) as server:
        peers = [await server.open() for _ in range(200)]
        for peer in peers:
            with contextlib.suppress(ConnectionError):
                await peer.send(b"GET /livez HTTP/1.1\r\n")

        answers = [await server.ask("/body") for _ in range(3)]

        assert [status(answer) for answer in answers] == [200] * 3
        assert len(server.connections) <= 20
        first = await peers[0].read_to_end()
        assert not first or (status(first), b"Retry-After: 1" in first) == (503, True)


async def test_requests_beyond_the_bound_are_told_to_come_again_and_health_is_answered() -> None:
    async with serving(max_busy=3, spare=10) as server:
        peers = [await server.open() for _ in range(3)]
        for peer in peers:
            await peer.send(get("/hold"))
        await until(lambda: server.app.num_begun == 3)

        refused = await server.ask("/hold")
        health = await server.ask("/livez?x=1")
        server.app.release.set()
        for peer in peers:
            assert (await peer.read_answer()).endswith(b"held")
        served = await server.ask("/hold")

        assert (status(refused), code(refused)) == (503, "service_unavailable")
        assert b"retry-after: 1" in refused.lower()
        assert b"connection: close" in refused.lower()
        assert (status(health), status(served)) == (200, 200)


async def test_web_page_can_read_that_no_more_requests_are_carried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MILLRACE_CORS_ORIGINS", "https://a.example")
    async with serving(max_busy=0) as server:
        peer = await server.open()
        await peer.send(get("/hold", "Origin: https://a.example"))
        answer = await peer.read_answer()

    assert status(answer) == 503
    assert b"access-control-allow-origin: https://a.example" in answer


async def test_busy_connections_are_never_let_go() -> None:
    async with serving(max_busy=5, spare=5) as server:
        held = [await server.open() for _ in range(5)]
        for peer in held:
            await peer.send(get("/hold"))
        await until(lambda: server.app.num_begun == 5)

        idle = [await server.open() for _ in range(50)]
        await until(lambda: len(server.connections) <= 10)
        server.app.release.set()

        for peer in held:
            assert (await peer.read_answer()).endswith(b"held")
        for peer in idle:
            peer.close()


async def test_connection_that_does_not_read_is_let_go_at_once() -> None:
    async with serving(max_busy=4, spare=0) as server:
        stuck = [await server.open(small_buffer=True) for _ in range(4)]
        for peer in stuck:
            await peer.send(get("/large"))
        await until(lambda: server.app.num_ended == 4)

        answers = [await server.ask("/livez") for _ in range(4)]

        assert [status(answer) for answer in answers] == [200] * 4


async def test_connections_end_with_their_clients() -> None:
    async with serving() as server:
        for sent in (b"", b"GET", get("/hold"), post("/body", 10)):
            peer = await server.open()
            await peer.send(sent)
            await until(lambda: len(server.connections) == 1)
            peer.close()
            await until(lambda: not len(server.connections))
