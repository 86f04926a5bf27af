"""What may stand in a request on the wire, and what becomes of it: RFC 9112, line by line. Nothing
that its sender meant as a body is ever taken for a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest

from tests.support.bare_http import (
    CHUNKED,
    HOST,
    Server,
    code,
    get,
    num_answers,
    request,
    serving,
    status,
)
from tests.support.waiting import until

UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoA")
CHUNKS = "5\r\nhello\r\n0\r\n\r\n"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as running:
        yield running


# A body that is, or begins with, a request of its own: it must reach the application or nobody.
HIDDEN = get("/livez").decode()


async def _refusals(server: Server, sent: Mapping[str, bytes]) -> dict[str, tuple[int, str]]:
    """How each of these is refused: with one answer, as the last of its connection."""
    refusals = {}
    for name, data in sent.items():
        answers = await server.exchange(data)
        is_last = num_answers(answers) == 1 and b"connection: close" in answers
        refusals[name] = (status(answers), code(answers)) if is_last else (0, repr(answers))
    return refusals


SERVED = {
    "length": request(HOST, "Content-Length: 5"),
    "length in blanks": request(HOST, "Content-Length: \t5\t "),
    "length with zeros": request(HOST, "Content-Length: 005"),
    "chunks": request(HOST, CHUNKED, body=CHUNKS),
    "chunks in capitals": request(HOST, "TRANSFER-ENCODING: CHUNKED", body=CHUNKS),
    "extensions": request(HOST, CHUNKED, body='5;a=b;c="d;\\"e"\r\nhello\r\n0;f\r\n\r\n'),
    "size with zeros": request(HOST, CHUNKED, body="0000000005\r\nhello\r\n00\r\n\r\n"),
    "trailers": request(HOST, CHUNKED, body="5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"),
    "lines before": b"\r\n\r\n" + request(HOST, "Content-Length: 5"),
    "absolute": request(HOST, "Content-Length: 5", line="POST http://y:1/body?q HTTP/1.1"),
    "empty host": request("Host:", "Content-Length: 5"),
    "host of brackets": request("Host: [::1]:8000", "Content-Length: 5"),
    "host with a port": request("host: a_b.example:8000", "Content-Length: 5"),
    "text of old": request(HOST, "X: caf\xe9", "Content-Length: 5"),
    "underscore": request(HOST, "Transfer_Encoding: chunked", "Content-Length: 5"),
    "other expectation": request(HOST, "Expect: wonders", "Content-Length: 5"),
    "h2c": request(HOST, *UPGRADE, "Content-Length: 5"),
    "h2c in chunks": request(HOST, *UPGRADE, CHUNKED, body=CHUNKS),
    "upgrade without connection": request(HOST, "Upgrade: h2c", "Content-Length: 5"),
    "websocket": request(
        HOST, "Connection: keep-alive, Upgrade", "Upgrade: websocket", "Content-Length: 5"
    ),
    "TLS": request(HOST, "Connection: Upgrade", "Upgrade: TLS/1.2", "Content-Length: 5"),
}


async def test_served_with_its_body_and_the_connection_serves_on(server: Server) -> None:
    for name, sent in SERVED.items():
        server.app.bodies.clear()
        answers = await server.exchange(sent)

        assert server.app.bodies == [b"hello"], name
        assert (num_answers(answers), answers.count(b" 200 OK")) == (2, 2), name
        assert answers.endswith(b"alive"), name


BAD_BODIES = {
    "two lengths": ("Content-Length: 5", "Content-Length: 6"),
    "two equal lengths": ("Content-Length: 5", "Content-Length: 5"),
    "a list of lengths": ("Content-Length: 5, 6",),
    "a list of equal lengths": ("Content-Length: 5, 5",),
    "plus": ("Content-Length: +5",),
    "minus": ("Content-Length: -5",),
    "hexadecimal": ("Content-Length: 0x5",),
    "space inside": ("Content-Length: 1 5",),
    "no number": ("Content-Length: ",),
    "beyond 64 bits": ("Content-Length: 18446744073709551621",),
    "length and chunks": ("Content-Length: 5", CHUNKED),
    "chunks and length": (CHUNKED, "Content-Length: 5"),
    "identity": ("Transfer-Encoding: identity",),
    "identity and length": ("Content-Length: 5", "Transfer-Encoding: identity"),
    "no coding": ("Transfer-Encoding:", "Content-Length: 5"),
    "chunks first": ("Transfer-Encoding: chunked, gzip",),
    "chunks twice": ("Transfer-Encoding: chunked, chunked",),
    "chunks in two lines": (CHUNKED, CHUNKED),
    "chunks, then identity": (CHUNKED, "Transfer-Encoding: identity"),
    "almost chunked": ("Transfer-Encoding: xchunked",),
    "chunked and more": ("Transfer-Encoding: chunkedx",),
    "quoted": ('Transfer-Encoding: "chunked"',),
    "with a parameter": ("Transfer-Encoding: chunked;a=b",),
    "vertical tab": ("Transfer-Encoding: \x0bchunked",),
    "space before the colon": ("Transfer-Encoding : chunked",),
    "folded": ("Transfer-Encoding:", " chunked"),
    "h2c with both": (*UPGRADE, "Content-Length: 5", CHUNKED),
}


async def test_body_whose_end_is_in_doubt_is_refused(server: Server) -> None:
    sent = {name: request(HOST, *lines, body=CHUNKS + HIDDEN) for name, lines in BAD_BODIES.items()}

    assert await _refusals(server, sent) == dict.fromkeys(sent, (400, "invalid_request"))
    assert not server.app.num_begun


async def test_unknown_transfer_coding_is_not_implemented(server: Server) -> None:
    sent = {
        coding: request(HOST, *lines, body=CHUNKS)
        for coding, lines in {
            "one line": ("Transfer-Encoding: gzip, chunked",),
            "two lines": ("Transfer-Encoding: gzip", CHUNKED),
            "made up": ("Transfer-Encoding: x;y=z, chunked",),
        }.items()
    }

    assert await _refusals(server, sent) == dict.fromkeys(sent, (501, "not_implemented"))
    assert not server.app.num_begun


BAD_HEADS = {
    "LF alone": request(HOST, "Content-Length: 5").replace(b"\r\n", b"\n"),
    "LF after a header": request(HOST, "X: a\nContent-Length: 5"),
    "LF after the request line": request(HOST).replace(b"1.1\r\n", b"1.1\n"),
    "LF at the end": request(HOST, "X: a").replace(b"a\r\n\r\n", b"a\r\n\n"),
    "CR in a value": request(HOST, "X: a\rb", "Content-Length: 5"),
    "CR between headers": request(HOST, "X: a\rContent-Length: 5"),
    "CR twice": request(HOST, "X: a\r", "Content-Length: 5"),
    "folded line": request(HOST, "X: a", " b", "Content-Length: 5"),
    "folded first line": request(" " + HOST, "Content-Length: 5"),
    "space before the colon": request(HOST, "X : a", "Content-Length: 5"),
    "no name": request(HOST, ": a", "Content-Length: 5"),
    "no colon": request(HOST, "nothing", "Content-Length: 5"),
    "NUL in a value": request(HOST, "X: a\0b", "Content-Length: 5"),
    "NUL in a name": request(HOST, "X\0: a", "Content-Length: 5"),
    "control in a value": request(HOST, "X: a\x01b", "Content-Length: 5"),
    "no host": request("Content-Length: 5"),
    "two hosts": request(HOST, "Host: y", "Content-Length: 5"),
    "two equal hosts": request(HOST, HOST, "Content-Length: 5"),
    "host with a path": request("Host: x/y", "Content-Length: 5"),
    "host with a user": request("Host: a@x", "Content-Length: 5"),
    "host with a space": request("Host: x y", "Content-Length: 5"),
    "two hosts of old": request(HOST, "Host: y", "Content-Length: 5", line="POST /body HTTP/1.0"),
    "relative target": request(HOST, line="POST body HTTP/1.1"),
    "asterisk": request(HOST, "Content-Length: 5", line="POST * HTTP/1.1"),
    "space in the target": request(HOST, line="POST /bo dy HTTP/1.1"),
    "bytes in the target": request(HOST, line="POST /b\xf6dy HTTP/1.1"),
    "tabs in the request line": request(HOST, line="POST\t/body\tHTTP/1.1"),
    "blank behind the request line": request(HOST, line="POST /body HTTP/1.1 "),
    "chunks before their time": request(HOST, CHUNKED, body=CHUNKS, line="POST /body HTTP/1.0"),
    "HTTP/2 without a word": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


async def test_head_that_may_be_read_in_two_ways_is_refused(server: Server) -> None:
    assert await _refusals(server, BAD_HEADS) == dict.fromkeys(BAD_HEADS, (400, "invalid_request"))
    assert not server.app.num_begun


async def test_method_that_nobody_knows_is_not_implemented(server: Server) -> None:
    methods = ("BREW", "post", "CONNECT")
    sent = {method: request(HOST, line=f"{method} /body HTTP/1.1") for method in methods}

    assert await _refusals(server, sent) == dict.fromkeys(sent, (501, "not_implemented"))


async def test_other_versions_are_named_as_such(server: Server) -> None:
    versions = ("", " HTTP/0.9", " HTTP/2.0", " HTTP/3.0", " HTTP/1.2")
    sent = {version: request(HOST, line=f"GET /livez{version}") for version in versions}

    assert await _refusals(server, sent) == dict.fromkeys(sent, (505, "http_version_not_supported"))


BAD_CHUNKS = {
    "plus": "+5\r\nhello\r\n0\r\n\r\n",
    "minus": "-5\r\nhello\r\n0\r\n\r\n",
    "prefix": "0x5\r\nhello\r\n0\r\n\r\n",
    "underscore": "5_\r\nhello\r\n0\r\n\r\n",
    "blank before": " 5\r\nhello\r\n0\r\n\r\n",
    "blank behind": "5 \r\nhello\r\n0\r\n\r\n",
    "no size": "\r\nhello\r\n0\r\n\r\n",
    "beyond 64 bits": "10000000000000005\r\nhello\r\n0\r\n\r\n",
    "LF behind the size": "5\nhello\r\n0\r\n\r\n",
    "LF behind the data": "5\r\nhello\n0\r\n\r\n",
    "LF at the end": "5\r\nhello\r\n0\n\n",
    "LF in an extension": "5;a\nhello\r\n0\r\n\r\n",
    "CR in an extension": "5;a\rb\r\nhello\r\n0\r\n\r\n",
    "NUL in an extension": "5;a\0\r\nhello\r\n0\r\n\r\n",
    "longer than said": "5\r\nhello!\r\n0\r\n\r\n",
    "length in the trailers": "5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
    "coding in the trailers": f"5\r\nhello\r\n0\r\n{CHUNKED}\r\n\r\n",
    "noise in the trailers": "5\r\nhello\r\n0\r\nnoise\r\n\r\n",
}


async def test_chunks_that_are_none_end_the_connection(server: Server) -> None:
    sent = {name: request(HOST, CHUNKED, body=body + HIDDEN) for name, body in BAD_CHUNKS.items()}

    assert await _refusals(server, sent) == dict.fromkeys(sent, (400, "invalid_request"))
    await until(lambda: server.app.num_ended == server.app.num_begun)
    assert not server.app.bodies


async def test_trailers_are_no_headers(server: Server) -> None:
    peer = await server.open()
    await peer.send(request(HOST, CHUNKED, line="POST /headers HTTP/1.1", body=""))
    await until(lambda: server.app.num_begun == 1)
    await peer.send(b"0\r\nAuthorization: Bearer stolen\r\n\r\n")

    assert b"authorization" not in (await peer.read_answer()).lower()


# The offer of another protocol --------------------------------------------------------------------


@pytest.mark.parametrize("head", [("Content-Length: {n}",), (CHUNKED,)], ids=["length", "chunks"])
async def test_body_of_an_ignored_upgrade_may_come_in_any_pieces(
    server: Server, head: tuple[str, ...]
) -> None:
    body = HIDDEN if "{n}" in head[0] else f"{len(HIDDEN):x}\r\n{HIDDEN}\r\n0\r\n\r\n"
    lines = [line.format(n=len(HIDDEN)) for line in head]
    sent = request(HOST, *UPGRADE, *lines, body=body)
    peer = await server.open()
    for begin in range(0, len(sent), 7):
        await peer.send(sent[begin : begin + 7])
        await asyncio.sleep(0)

    assert (await peer.read_answer()).endswith(str(len(HIDDEN)).encode())
    assert server.app.bodies == [HIDDEN.encode()]
    assert server.app.num_begun == 1


async def test_upgrades_one_after_the_other_in_one_packet_keep_their_bodies(
    server: Server,
) -> None:
    sent = request(HOST, *UPGRADE, f"Content-Length: {len(HIDDEN)}", body=HIDDEN)
    answers = await server.exchange(sent * 3)

    assert server.app.bodies == [HIDDEN.encode()] * 3
    assert answers.count(b"HTTP/1.1 200 OK") == 4


async def test_upgrade_on_the_last_request_of_a_connection(server: Server) -> None:
    lines = ("Connection: close", *UPGRADE, "Content-Length: 5")
    answers = await server.exchange(request(HOST, *lines))

    assert (status(answers), num_answers(answers)) == (200, 1)
    assert b"connection: close" in answers
    assert server.app.bodies == [b"hello"]
