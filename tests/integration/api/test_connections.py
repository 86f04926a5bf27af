"""Peers that leave things undone, on real sockets, in front of a small application."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from api.limits.pace import Pace
from api.server.__main__ import server_config
from api.server.bounds import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED, Timeouts
from api.server.connections import Connections
from tests.support.waiting import until

LONG = Timeouts(head_s=60, idle_s=60, body_s=60, stall_s=60, linger_s=60, tick_s=0.05)
SOON_S = 0.2
LATE_S = 10.0  # a test fails when what should end has not ended by then


@dataclass
class Application:
    """What requests ask of it stands in their path."""

    release: asyncio.Event = field(default_factory=asyncio.Event)
    num_begun: int = 0
    num_ended: int = 0
    bodies: list[bytes] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.num_begun += 1
        try:
            await getattr(self, "_" + scope["path"].strip("/"))(receive, send)
        finally:
            self.num_ended += 1

    async def _livez(self, receive: Receive, send: Send) -> None:
        await _answer(send, b"alive")

    async def _early(self, receive: Receive, send: Send) -> None:
        """Doesn't read the body."""
        await _answer(send, b"refused")

    async def _hold(self, receive: Receive, send: Send) -> None:
        """Answers when it is told to, or ends with the client."""
        left = asyncio.create_task(_leaving(receive))
        free = asyncio.create_task(self.release.wait())
        await asyncio.wait((left, free), return_when=asyncio.FIRST_COMPLETED)
        left.cancel()
        free.cancel()
        await _answer(send, b"held")

    async def _body(self, receive: Receive, send: Send) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                self.bodies.append(body)
                await _answer(send, str(len(body)).encode())
                return

    async def _late(self, receive: Receive, send: Send) -> None:
        """Reads the body when it is told to."""
        await self.release.wait()
        await self._body(receive, send)

    async def _flood(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1_000):
            await send({"type": "http.response.body", "body": bytes(64 << 10), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _large(self, receive: Receive, send: Send) -> None:
        """An answer at once, more than the buffers of both sides hold."""
        await _answer(send, bytes(32 << 20))


async def _leaving(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(send: Send, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Server:
    """A running server, and what of it tests look at."""

    app: Application
    connections: Connections
    address: tuple[str, int]
    peers: list[Peer] = field(default_factory=list)

    async def open(self, *, small_buffer: bool = False) -> Peer:
        client = socket.socket()
        if small_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, self.address)
        self.peers.append(Peer(client))
        return self.peers[-1]

    async def ask(self, path: str) -> bytes:
        peer = await self.open()
        await peer.send(_get(path))
        answer = await peer.read_answer()
        peer.close()
        return answer


class Peer:
    """One connection of a client."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        self._client.close()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._client, data)

    async def read(self) -> bytes:
        """Some bytes; none when the server has closed, with or without a reset."""
        try:
            async with asyncio.timeout(LATE_S):
                return await self._loop.sock_recv(self._client, 1 << 16)
        except ConnectionError:
            return b""

    async def read_answer(self) -> bytes:
        """One whole answer with a declared length."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += await self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += await self._more()
        return head + b"\r\n\r\n" + body

    async def read_to_end(self) -> bytes:
        data = b""
        while chunk := await self.read():
            data += chunk
        return data

    async def _more(self) -> bytes:
        chunk = await self.read()
        assert chunk, "the server closed the connection"
        return chunk


@asynccontextmanager
async def serving(
    timeouts: Timeouts = LONG, *, max_busy: int = 1_000, spare: int = 100
) -> AsyncIterator[Server]:
    app = Application()
    connections = Connections(max_busy, spare=spare, timeouts=timeouts)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1_024)
    config = server_config(app, connections)
    config.log_config = None
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve([listener]))
    await until(lambda: server.started or task.done())
    running = Server(app, connections, listener.getsockname())
    try:
        yield running
    finally:
        app.release.set()
        for peer in running.peers:
            peer.close()
        config.timeout_graceful_shutdown = 1
        server.should_exit = True
        await task


def _get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def _post(path: str, length: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


def _status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def _code(answer: bytes) -> str:
    code: str = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]
    return code


# Slow peers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [b"G", b"GET /livez", b"GET /livez HTTP/1.1\r\nHost", _get("/livez")[:-2]],
    ids=["method", "url", "header", "end"],
)
async def test_half_sent_head_is_refused_in_time(sent: bytes) -> None:
    async with serving(replace(LONG, head_s=SOON_S)) as server:
        peer = await server.open()
        await peer.send(sent)

        answer = await peer.read_to_end()

        assert (_status(answer), _code(answer)) == (408, "request_timeout")
        await until(lambda: not len(server.connections))


async def test_dribbled_head_earns_no_time() -> None:
    async with serving(replace(LONG, head_s=0.5)) as server:
        peer = await server.open()
        await peer.send(b"GET /livez HTTP/1.1\r\n")

        async def dribble() -> None:
            while True:
                await peer.send(b"X: y\r\n")
                await asyncio.sleep(0.05)

        dribbling = asyncio.create_task(dribble())
        answer = await peer.read_to_end()
        dribbling.cancel()
        await asyncio.gather(dribbling, return_exceptions=True)

        assert not answer or _status(answer) == 408  # or the reset was faster
        await until(lambda: not len(server.connections))


@pytest.mark.parametrize("sent", [b"", b"\r\n", _get("/livez")], ids=["new", "newline", "served"])
async def test_silent_connection_is_closed_without_a_word(sent: bytes) -> None:
    async with serving(replace(LONG, idle_s=SOON_S)) as server:
        peer = await server.open()
        await peer.send(sent)

        answer = await peer.read_to_end()

        assert answer.count(b"HTTP/1.1") == (1 if sent.startswith(b"GET") else 0)
        await until(lambda: not len(server.connections))


async def test_dribbled_body_ends_in_time_and_so_does_its_request() -> None:
    async with serving(replace(LONG, body_s=0.5)) as server:
        peer = await server.open()
        await peer.send(_post("/body", 100))

        async def dribble() -> None:
            while True:
                await peer.send(b"x")
                await asyncio.sleep(0.05)

        dribbling = asyncio.create_task(dribble())
        answer = await peer.read_to_end()
        dribbling.cancel()
        await asyncio.gather(dribbling, return_exceptions=True)

        assert not answer or _status(answer) == 408
        await until(lambda: server.app.num_ended == 1 and not len(server.connections))
        assert not server.app.bodies


async def test_body_at_a_fair_pace_takes_as_long_as_it_takes() -> None:
    async with serving(replace(LONG, body_s=0.4)) as server:
        peer = await server.open()
        await peer.send(_post("/body", 20 * 8_192))

        for _ in range(20):
            await peer.send(bytes(8_192))
            await asyncio.sleep(0.05)

        assert (await peer.read_answer()).endswith(str(20 * 8_192).encode())


async def test_time_in_which_the_server_does_not_read_is_not_the_peers() -> None:
    async with serving(replace(LONG, body_s=0.3)) as server:
        peer = await server.open()
        await peer.send(_post("/late", 512 << 10))
        await peer.send(bytes(256 << 10))
        await until(lambda: server.app.num_begun == 1)

        await asyncio.sleep(0.8)  # longer than a pause may be
        server.app.release.set()
        await peer.send(bytes(256 << 10))

        assert (await peer.read_answer()).endswith(str(512 << 10).encode())


async def test_body_that_nobody_needs_earns_no_time() -> None:
    async with serving(replace(LONG, head_s=0.5)) as server:
        peer = await server.open()
        await peer.send(_post("/early", 1 << 30))
        assert (await peer.read_answer()).endswith(b"refused")

        async def push() -> None:
            while True:
                await peer.send(bytes(8_192))
                await asyncio.sleep(0.05)

        pushing = asyncio.create_task(push())
        assert await peer.read_to_end() == b""
        pushing.cancel()
        await asyncio.gather(pushing, return_exceptions=True)
        await until(lambda: not len(server.connections))


async def test_bodies_that_nobody_needs_are_dropped_one_after_the_other() -> None:
    async with serving() as server:
        server.connections.drops = Pace(1)  # after the first piece nothing for a long time
        first, second = await server.open(), await server.open()
        for peer in (first, second):
            await peer.send(_post("/early", 1 << 30))
            assert (await peer.read_answer()).endswith(b"refused")
            await peer.send(bytes(1_000))

        waiting = server.connections._waiting
        await until(lambda: [peer.flow.read_paused for peer in waiting] == [False, True])  # type: ignore[attr-defined]
        assert _status(await server.ask("/livez")) == 200


async def test_connection_serves_on_behind_a_body_that_nobody_needed() -> None:
    async with serving() as server:
        peer = await server.open()
        await peer.send(_post("/early", 4 << 20))
        assert (await peer.read_answer()).endswith(b"refused")
        await peer.send(bytes(4 << 20) + _get("/livez"))

        assert (await peer.read_answer()).endswith(b"alive")


@pytest.mark.parametrize("path", ["/flood", "/large"])
async def test_answer_that_is_not_read_is_given_up(path: str) -> None:
    async with serving(replace(LONG, stall_s=SOON_S)) as server:
        peer = await server.open(small_buffer=True)
        await peer.send(_get(path))

        await until(lambda: server.app.num_ended == 1 and not len(server.connections))


async def test_close_that_the_peer_holds_up_is_forced() -> None:
    async with serving(replace(LONG, linger_s=SOON_S)) as server:
        peer = await server.open(small_buffer=True)
        await peer.send(_get("/large", "Connection: close"))

        await until(lambda: server.app.num_ended == 1 and not len(server.connections))


async def test_slow_answer_is_nobodys_fault() -> None:
    async with serving(Timeouts(head_s=0.1, idle_s=0.1, body_s=0.1, tick_s=0.02)) as server:
        peer = await server.open()
        await peer.send(_get("/hold"))
        await asyncio.sleep(0.5)
        server.app.release.set()

        assert (await peer.read_answer()).endswith(b"held")


# Large heads --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"x" * (2 * MAX_HEAD_BYTES),
        b"GET /livez HTTP/1.1\r\nX: " + b"x" * (2 * MAX_HEAD_BYTES),
        _get("/livez", *["X: " + "x" * 1_000] * (MAX_HEAD_BYTES // 1_000 + 1)),
        _get("/livez", *["X: y"] * MAX_HEADERS),
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

        assert not answer or (_status(answer), _code(answer)) == (431, "headers_too_large")
        await until(lambda: not len(server.connections))
        assert not server.app.num_begun


async def test_head_of_allowed_size_is_served() -> None:
    async with serving() as server:
        peer = await server.open()
        await peer.send(_get("/livez", "X: " + "x" * (MAX_HEAD_BYTES - 100)))
        assert (await peer.read_answer()).endswith(b"alive")

        await peer.send(_get("/livez", *["X: y"] * (MAX_HEADERS - 1)))
        assert (await peer.read_answer()).endswith(b"alive")


async def test_trailers_are_bounded_as_headers_are() -> None:
    async with serving() as server:
        peer = await server.open()
        await peer.send(b"POST /body HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(4 * MAX_HEAD_BYTES // 1_000):
                await peer.send(b"X: " + b"x" * 1_000 + b"\r\n")

        await until(lambda: server.app.num_ended == 1 and not len(server.connections))
        assert not server.app.bodies


async def test_body_in_many_small_chunks_is_taken() -> None:
    async with serving() as server:
        peer = await server.open()
        await peer.send(b"POST /body HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(40):
            await peer.send((b"10\r\n" + b"x" * 16 + b"\r\n") * 1_000)
        await peer.send(b"0\r\n\r\n")

        assert (await peer.read_answer()).endswith(b"640000")


async def test_requests_sent_ahead_are_answered_in_order_up_to_a_bound() -> None:
    async with serving() as server:
        peer = await server.open()
        await peer.send(_get("/livez") * MAX_PIPELINED)
        answers = b""
        while answers.count(b"alive") < MAX_PIPELINED:
            answers += await peer.read()

        await peer.send(_get("/livez") * 100 * MAX_PIPELINED)
        await until(lambda: not len(server.connections))
        assert server.app.num_begun <= 3 * MAX_PIPELINED


async def test_noise_behind_a_request_does_not_get_into_its_answer() -> None:
    async with serving() as server:
        peer = await server.open()
        await peer.send(_get("/flood"))
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

        assert (_status(answer), _code(answer)) == (400, "invalid_request")


# Too many -----------------------------------------------------------------------------------------


async def test_half_sent_requests_make_room_for_whole_ones() -> None:
    async with serving(max_busy=10, spare=10) as server:
        peers = [await server.open() for _ in range(200)]
        for peer in peers:
            with contextlib.suppress(ConnectionError):
                await peer.send(b"GET /livez HTTP/1.1\r\n")

        answers = [await server.ask("/body") for _ in range(3)]

        assert [_status(answer) for answer in answers] == [200] * 3
        assert len(server.connections) <= 20
        first = await peers[0].read_to_end()
        assert not first or (_status(first), b"Retry-After: 1" in first) == (503, True)


async def test_requests_beyond_the_bound_are_told_to_come_again_and_health_is_answered() -> None:
    async with serving(max_busy=3, spare=10) as server:
        peers = [await server.open() for _ in range(3)]
        for peer in peers:
            await peer.send(_get("/hold"))
        await until(lambda: server.app.num_begun == 3)

        refused = await server.ask("/hold")
        health = await server.ask("/livez?x=1")
        server.app.release.set()
        for peer in peers:
            assert (await peer.read_answer()).endswith(b"held")
        served = await server.ask("/hold")

        assert (_status(refused), _code(refused)) == (503, "service_unavailable")
        assert b"retry-after: 1" in refused.lower()
        assert b"connection: close" in refused.lower()
        assert (_status(health), _status(served)) == (200, 200)


async def test_busy_connections_are_never_let_go() -> None:
    async with serving(max_busy=5, spare=5) as server:
        held = [await server.open() for _ in range(5)]
        for peer in held:
            await peer.send(_get("/hold"))
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
            await peer.send(_get("/large"))
        await until(lambda: server.app.num_ended == 4)

        answers = [await server.ask("/livez") for _ in range(4)]

        assert [_status(answer) for answer in answers] == [200] * 4


async def test_connections_end_with_their_clients() -> None:
    async with serving() as server:
        for sent in (b"", b"GET", _get("/hold"), _post("/body", 10)):
            peer = await server.open()
            await peer.send(sent)
            await until(lambda: len(server.connections) == 1)
            peer.close()
            await until(lambda: not len(server.connections))
