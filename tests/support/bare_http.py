"""A server with real sockets in front of a small application, and peers that speak bare HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import uvicorn
from starlette.types import Receive, Scope, Send

from api.server.__main__ import server_config
from api.server.bounds import Timeouts
from api.server.connections import Connections
from tests.support.waiting import until

HOST = "Host: x"
CHUNKED = "Transfer-Encoding: chunked"
LONG = Timeouts(head_s=60, idle_s=60, body_s=60, stall_s=60, linger_s=60, quiet_s=0.2, tick_s=0.05)
SOON_S = 0.2
LATE_S = 10.0  # a test fails when what should end has not ended by then


@dataclass
class Application:
    """What requests ask of it stands in their path."""

    release: asyncio.Event = field(default_factory=asyncio.Event)
    num_begun: int = 0
    num_ended: int = 0
    bodies: list[bytes] = field(default_factory=list)
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)  # of the last request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.num_begun += 1
        try:
            self.headers = scope["headers"]
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

    async def _headers(self, receive: Receive, send: Send) -> None:
        """Names the headers that there are when the body has ended."""
        while (await receive())["more_body"]:
            pass
        await _answer(send, b" ".join(name for name, _ in self.headers))

    async def _stream(self, receive: Receive, send: Send) -> None:
        """An answer without a length."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for word in (b"one", b"two", b"three"):
            await send({"type": "http.response.body", "body": word, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

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
        await peer.send(get(path))
        answer = await peer.read_answer()
        peer.close()
        return answer

    async def exchange(self, sent: bytes) -> bytes:
        """All answers to this, and to the request behind it if the connection lives so long."""
        peer = await self.open()
        await peer.send(sent)
        await peer.send(get("/livez", "Connection: close"))
        return await peer.read_to_end()


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


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def post(path: str, length: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def code(answer: bytes) -> str:
    code: str = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]
    return code


def request(*lines: str, body: str = "hello", line: str = "POST /body HTTP/1.1") -> bytes:
    """With these headers alone."""
    return ("\r\n".join([line, *lines, "", ""]) + body).encode("latin-1")


def num_answers(answers: bytes) -> int:
    return len(re.findall(rb"HTTP/1\.1 \d{3} ", answers))
