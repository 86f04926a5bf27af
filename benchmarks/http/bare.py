"""The peer of P6: writes ready-made events to every open stream, one after the other."""

from __future__ import annotations

import asyncio

from starlette.types import Receive, Scope, Send

from benchmarks.http.fanout import NUM_EVENTS, PACE_S

_BLOCKS = [
    b'id: %d\nevent: token\ndata: {"index":0,"text":" word","token_ids":[%d]}\n\n' % (seq, seq)
    for seq in range(1, NUM_EVENTS + 1)
]
_sends: list[Send] = []


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """`GET /` opens a stream, `POST /go` writes to all of them at an engine's pace."""
    if scope["type"] != "http":
        return
    if scope["path"] != "/go":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b":\n", "more_body": True})
        _sends.append(send)
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    for block in _BLOCKS:
        message = {"type": "http.response.body", "body": block, "more_body": True}
        for write in _sends:
            await write(message)
        await asyncio.sleep(PACE_S)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
