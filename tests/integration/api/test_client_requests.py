"""What the HTTP libraries of other languages write to the wire, over one connection.

Java and Go as recorded from JDK 17's java.net.http, OkHttp 3.13 and Go 1.19; .NET's HttpClient as
its sources write it. .NET Framework waits for 100 Continue unless it is told not to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.bare_http import Server, get, num_answers, request, serving, status

KEY = "Authorization: Bearer mlr_live_x"
JSON = "Content-Type: application/json"
UTF8 = f"{JSON}; charset=utf-8"
HOST = "Host: 127.0.0.1:8000"
BODY = '{"model":"demo","prompt":"{}"}'  # 30 bytes: its length as a chunk has a letter
LENGTH = "Content-Length: 30"
H2C = ("HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA", "Upgrade: h2c")
OFFER = "Connection: Upgrade, HTTP2-Settings"
JAVA = ("User-Agent: Java-http-client/17.0.15", KEY, JSON)
OK = (HOST, "Connection: Keep-Alive", "Accept-Encoding: gzip")
OK_AGENT = "User-Agent: okhttp/3.13.1"
GO = (HOST, "User-Agent: Go-http-client/1.1")
GZIP = "Accept-Encoding: gzip"

# The lines of a head.
PLAIN = {
    "JDK": (OFFER, LENGTH, HOST, *H2C, *JAVA),
    "JDK for HTTP/1.1": (LENGTH, HOST, *JAVA),
    "OkHttp": (KEY, UTF8, LENGTH, *OK, OK_AGENT),
    "Go": (*GO, LENGTH, KEY, JSON, GZIP),
    ".NET": (HOST, KEY, UTF8, LENGTH),
    ".NET Framework": (KEY, UTF8, HOST, LENGTH, "Connection: Keep-Alive"),
}
CHUNKED = {
    "JDK": (OFFER, HOST, *H2C, "Transfer-encoding: chunked", *JAVA),
    "JDK for HTTP/1.1": (HOST, "Transfer-encoding: chunked", *JAVA),
    "OkHttp": (KEY, JSON, "Transfer-Encoding: chunked", *OK, OK_AGENT),
    "Go": (*GO, "Transfer-Encoding: chunked", KEY, JSON, GZIP),
    ".NET": (HOST, KEY, "Transfer-Encoding: chunked", UTF8),
}
EXPECTING = {
    "JDK": (OFFER, LENGTH, "Expect: 100-Continue", HOST, *H2C, *JAVA),
    "JDK for HTTP/1.1": (LENGTH, "Expect: 100-Continue", HOST, *JAVA),
    "OkHttp": (KEY, "Expect: 100-continue", UTF8, LENGTH, *OK, OK_AGENT),
    "Go": (*GO, LENGTH, KEY, JSON, "Expect: 100-continue", GZIP),
    ".NET": (HOST, KEY, "Expect: 100-continue", UTF8, LENGTH),
    ".NET in chunks": (HOST, KEY, "Expect: 100-continue", "Transfer-Encoding: chunked", UTF8),
    ".NET Framework": (KEY, UTF8, HOST, LENGTH, "Expect: 100-continue", "Connection: Keep-Alive"),
}
ASKING = {
    "JDK": (OFFER, "Content-Length: 0", HOST, *H2C, *JAVA[:2]),
    "JDK for HTTP/1.1": ("Content-Length: 0", HOST, *JAVA[:2]),
    "OkHttp": (KEY, *OK, OK_AGENT),
    "Go": (*GO, KEY, GZIP),
    ".NET": (HOST, KEY),
}


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as running:
        yield running


def _in_chunks(size: str) -> str:
    return f"{size}\r\n{BODY}\r\n0\r\n\r\n"


@pytest.mark.parametrize("size", ["1e", "1E"], ids=["small", "capital"])
async def test_a_body_in_chunks_is_read_and_the_connection_serves_on(
    server: Server, size: str
) -> None:
    for name, lines in CHUNKED.items():
        await _assert_served(server, name, lines, _in_chunks(size))


async def test_a_body_with_its_length_is_read_and_the_connection_serves_on(server: Server) -> None:
    for name, lines in PLAIN.items():
        await _assert_served(server, name, lines, BODY)


async def _assert_served(server: Server, name: str, lines: tuple[str, ...], body: str) -> None:
    """Twice on one connection, with the body in a packet of its own."""
    server.app.bodies.clear()
    peer = await server.open()
    for num_sent in (1, 2):
        await peer.send(request(*lines, body=""))
        await peer.send(body.encode())

        answer = await peer.read_answer()
        assert (status(answer), answer[-2:]) == (200, b"30"), name
        assert server.app.bodies == [BODY.encode()] * num_sent, name
    await peer.send(get("/livez", "Connection: close"))
    assert num_answers(await peer.read_to_end()) == 1, name


async def test_who_waits_before_sending_the_body_is_told_to_go_on(server: Server) -> None:
    for name, lines in EXPECTING.items():
        server.app.bodies.clear()
        peer = await server.open()
        await peer.send(request(*lines, body=""))
        assert await peer.read() == b"HTTP/1.1 100 Continue\r\n\r\n", name

        is_chunked = "Transfer-Encoding: chunked" in lines
        await peer.send((_in_chunks("1E") if is_chunked else BODY).encode())
        assert status(await peer.read_answer()) == 200, name
        assert server.app.bodies == [BODY.encode()], name


async def test_a_question_is_answered_and_the_connection_serves_on(server: Server) -> None:
    for name, lines in ASKING.items():
        answers = await server.exchange(request(*lines, body="", line="GET /livez HTTP/1.1"))

        assert (num_answers(answers), answers.count(b"alive")) == (2, 2), name
        assert not server.app.bodies, name


async def test_a_stream_comes_in_chunks_over_the_same_connection(server: Server) -> None:
    for name, lines in ASKING.items():
        answers = await server.exchange(request(*lines, body="", line="GET /stream HTTP/1.1"))

        head, _, rest = answers.partition(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head.lower(), name
        assert rest.startswith(b"3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n"), name
        assert answers.endswith(b"alive"), name
