"""Answers before the end of a request, and to clients of before HTTP/1.1: neither lost nor followed
by another that nobody asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests.support.bare_http import (
    CHUNKED,
    HOST,
    LONG,
    Peer,
    Server,
    get,
    num_answers,
    post,
    request,
    serving,
    status,
)
from tests.support.waiting import until


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as running:
        yield running


# Answers before the end of a request --------------------------------------------------------------


async def test_what_came_whole_is_answered_before_noise_ends_the_connection(
    server: Server,
) -> None:
    peer = await server.open()
    await peer.send(get("/hold") + request(HOST, "Content-Length: 5") + b"\x00noise\r\n\r\n")
    await until(lambda: server.app.num_begun == 1)
    server.app.release.set()
    answers = await peer.read_to_end()

    assert answers.count(b"HTTP/1.1 200 OK") == num_answers(answers) == 2
    assert b"held" in answers
    assert server.app.bodies == [b"hello"]


@pytest.mark.parametrize(
    "head",
    [
        request(HOST, "Connection: close", "Content-Length: 30000000", line="POST /early HTTP/1.1"),
        request("Content-Length: 30000000", line="POST /early HTTP/1.0"),
        request(HOST, CHUNKED, "Content-Length: 3", line="POST /early HTTP/1.1"),
        b"POST /early HTTP/1.1\r\nHost: x\r\nX: " + bytes(1 << 20),
        request(HOST, *["X: y"] * 200, line="POST /early HTTP/1.1"),
    ],
    ids=["last", "of old", "in doubt", "huge head", "many headers"],
)
async def test_early_answer_is_not_lost_by_who_still_sends(server: Server, head: bytes) -> None:
    peer = await server.open()
    sending = asyncio.create_task(_send_much(peer, head, 4 << 20))
    await sending
    answers = await peer.read_to_end()

    assert num_answers(answers) == 1
    assert status(answers) in (200, 400, 431)
    assert b"connection: close" in answers
    await until(lambda: not len(server.connections))


async def _send_much(peer: Peer, head: bytes, num_bytes: int) -> None:
    await peer.send(head)
    with contextlib.suppress(ConnectionError):
        for _ in range(num_bytes >> 16):
            await peer.send(bytes(1 << 16))
            await asyncio.sleep(0)


async def test_who_goes_on_sending_after_the_last_answer_is_cut_off() -> None:
    async with serving(replace(LONG, linger_s=0.5)) as server:
        peer = await server.open()
        head = request(HOST, "Connection: close", CHUNKED, line="POST /early HTTP/1.1", body="")
        sending = asyncio.create_task(_send_much(peer, head, 1 << 40))

        await until(lambda: server.app.num_ended == 1 and not len(server.connections))
        await sending


async def test_continue_is_said_when_the_body_is_wanted(server: Server) -> None:
    peer = await server.open()
    await peer.send(request(HOST, "Expect: 100-Continue", "Content-Length: 5", body=""))

    assert await peer.read() == b"HTTP/1.1 100 Continue\r\n\r\n"
    await peer.send(b"hello")
    assert (await peer.read_answer()).endswith(b"5")


async def test_body_that_was_never_asked_for_is_not_waited_for(server: Server) -> None:
    peer = await server.open()
    line = "POST /early HTTP/1.1"
    await peer.send(request(HOST, "Expect: 100-continue", "Content-Length: 99", body="", line=line))
    answers = await peer.read_to_end()

    assert (status(answers), b"connection: close" in answers) == (200, True)


# HTTP/1.0 -----------------------------------------------------------------------------------------


async def test_stream_to_an_older_client_ends_with_the_connection(server: Server) -> None:
    peer = await server.open()
    await peer.send(b"GET /stream HTTP/1.0\r\n\r\n")
    head, _, body = (await peer.read_to_end()).partition(b"\r\n\r\n")

    assert b"chunked" not in head.lower()
    assert b"connection: close" in head
    assert body == b"onetwothree"


async def test_older_client_gets_nothing_it_does_not_know(server: Server) -> None:
    lines = ("Connection: keep-alive", "Expect: 100-continue", "Content-Length: 5")
    answers = await server.exchange(request(*lines, line="POST /body HTTP/1.0"))

    assert (status(answers), num_answers(answers)) == (200, 1)
    assert b"content-length: 1" in answers
    assert b"connection: close" in answers
    assert server.app.bodies == [b"hello"]


async def test_head_of_a_stream_to_an_older_client_has_no_body(server: Server) -> None:
    peer = await server.open()
    await peer.send(b"HEAD /stream HTTP/1.0\r\n\r\n")

    assert (await peer.read_to_end()).endswith(b"\r\n\r\n")


async def test_body_that_comes_late_is_refused_without_a_second_answer() -> None:
    async with serving(replace(LONG, body_s=0.2)) as server:
        peer = await server.open()
        await peer.send(post("/body", 10))
        answers = await peer.read_to_end()

        assert (status(answers), num_answers(answers)) == (408, 1)
