"""Peers that are slow, silent or stop halfway lose their connection in time, and only they."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from api.limits.pace import Pace
from api.server.bounds import Timeouts
from tests.support.bare_http import (
    LONG,
    SOON_S,
    code,
    get,
    post,
    serving,
    status,
)
from tests.support.waiting import until


@pytest.mark.parametrize(
    "sent",
    [b"G", b"GET /livez", b"GET /livez HTTP/1.1\r\nHost", get("/livez")[:-2]],
    ids=["method", "url", "header", "end"],
)
async def test_half_sent_head_is_refused_in_time(sent: bytes) -> None:
    async with serving(replace(LONG, head_s=SOON_S)) as server:
        peer = await server.open()
        await peer.send(sent)

        answer = await peer.read_to_end()

        assert (status(answer), code(answer)) == (408, "request_timeout")
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

        assert not answer or status(answer) == 408  # or the reset was faster
        await until(lambda: not len(server.connections))


@pytest.mark.parametrize("sent", [b"", b"\r\n", get("/livez")], ids=["new", "newline", "served"])
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
        await peer.send(post("/body", 100))

        async def dribble() -> None:
            while True:
                await peer.send(b"x")
                await asyncio.sleep(0.05)

        dribbling = asyncio.create_task(dribble())
        answer = await peer.read_to_end()
        dribbling.cancel()
        await asyncio.gather(dribbling, return_exceptions=True)

        assert not answer or status(answer) == 408
        await until(lambda: server.app.num_ended == 1 and not len(server.connections))
        assert not server.app.bodies


async def test_body_at_a_fair_pace_takes_as_long_as_it_takes() -> None:
    async with serving(replace(LONG, body_s=0.4)) as server:
        peer = await server.open()
        await peer.send(post("/body", 20 * 8_192))

        for _ in range(20):
            await peer.send(bytes(8_192))
            await asyncio.sleep(0.05)

        assert (await peer.read_answer()).endswith(str(20 * 8_192).encode())


async def test_time_in_which_the_server_does_not_read_is_not_the_peers() -> None:
    async with serving(replace(LONG, body_s=0.3)) as server:
        peer = await server.open()
        await peer.send(post("/late", 512 << 10))
        await peer.send(bytes(256 << 10))
        await until(lambda: server.app.num_begun == 1)

        await asyncio.sleep(0.8)  # longer than a pause may be
        server.app.release.set()
        await peer.send(bytes(256 << 10))

        assert (await peer.read_answer()).endswith(str(512 << 10).encode())


async def test_body_that_nobody_needs_earns_no_time() -> None:
    async with serving(replace(LONG, head_s=0.5)) as server:
        peer = await server.open()
        await peer.send(post("/early", 1 << 30))
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
            await peer.send(post("/early", 1 << 30))
            assert (await peer.read_answer()).endswith(b"refused")
            await peer.send(bytes(1_000))

        waiting = server.connections._waiting
        await until(lambda: [peer.flow.read_paused for peer in waiting] == [False, True])  # type: ignore[attr-defined]
        assert status(await server.ask("/livez")) == 200


async def test_connection_serves_on_behind_a_body_that_nobody_needed() -> None:
    async with serving() as server:
        peer = await server.open()
        await peer.send(post("/early", 4 << 20))
        assert (await peer.read_answer()).endswith(b"refused")
        await peer.send(bytes(4 << 20) + get("/livez"))

        assert (await peer.read_answer()).endswith(b"alive")


@pytest.mark.parametrize("path", ["/flood", "/large"])
async def test_answer_that_is_not_read_is_given_up(path: str) -> None:
    async with serving(replace(LONG, stall_s=SOON_S)) as server:
        peer = await server.open(small_buffer=True)
        await peer.send(get(path))

        await until(lambda: server.app.num_ended == 1 and not len(server.connections))


async def test_close_that_the_peer_holds_up_is_forced() -> None:
    async with serving(replace(LONG, linger_s=SOON_S)) as server:
        peer = await server.open(small_buffer=True)
        await peer.send(get("/large", "Connection: close"))

        await until(lambda: server.app.num_ended == 1 and not len(server.connections))


async def test_slow_answer_is_nobodys_fault() -> None:
    async with serving(Timeouts(head_s=0.1, idle_s=0.1, body_s=0.1, tick_s=0.02)) as server:
        peer = await server.open()
        await peer.send(get("/hold"))
        await asyncio.sleep(0.5)  # several times what any peer may take
        server.app.release.set()

        assert (await peer.read_answer()).endswith(b"held")
