from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.types import Message

from api.json_body import read_json_object
from api.limits.bodies import LARGE_BYTES, LargeBodies
from api.limits.turns import Turn
from api.long_work import LongWork
from store.tenant_gate import TenantGate
from tasks.errors import InvalidRequest, RateLimitExceeded

LARGE = b'{"a": "%s"}' % (b"x" * LARGE_BYTES)


class Sender:
    """A request whose body is received piece by piece, as far as somebody reads it."""

    def __init__(
        self,
        tenant_id: UUID,
        bodies: LargeBodies,
        body: bytes = LARGE,
        *,
        headers: Sequence[tuple[bytes, bytes]] | None = None,
    ) -> None:
        self.num_read = 0
        self.may_end = asyncio.Event()
        self._body = body
        state = {"turn": Turn(TenantGate(8, 1.0), tenant_id), "bodies": bodies.of(tenant_id)}
        if headers is None:
            headers = [(b"content-length", str(len(body)).encode())]
        app = FastAPI()
        app.state.services = SimpleNamespace(long_work=LongWork())
        scope = {
            "type": "http",
            "method": "POST",
            "headers": list(headers),
            "state": state,
            "app": app,
        }
        self.request = Request(scope, self._receive)

    async def _receive(self) -> Message:
        self.num_read += 1
        if self.num_read == 1:
            return {"type": "http.request", "body": self._body[:-1], "more_body": True}
        await self.may_end.wait()
        return {"type": "http.request", "body": self._body[-1:], "more_body": False}

    async def begin(self) -> asyncio.Task[dict[str, object]]:
        """Read until the sender pauses."""
        reading = asyncio.create_task(read_json_object(self.request, dict))
        while self.num_read < 2:
            await asyncio.sleep(0)
        return reading


async def test_large_body_beyond_the_tenants_places_is_not_received() -> None:
    bodies, tenant = LargeBodies(max_tenant=1, max_wait_s=0.01), uuid4()
    slow, next_ = Sender(tenant, bodies), Sender(tenant, bodies)
    reading = await slow.begin()

    with pytest.raises(RateLimitExceeded):
        await read_json_object(next_.request, dict)
    assert next_.num_read == 0

    slow.may_end.set()
    assert (await reading).keys() == {"a"}
    next_.may_end.set()
    assert (await read_json_object(next_.request, dict)).keys() == {"a"}


async def test_body_of_unknown_length_counts_as_large() -> None:
    bodies, tenant = LargeBodies(max_tenant=1, max_wait_s=0.01), uuid4()
    chunked = Sender(tenant, bodies, b'{"a":1}', headers=[(b"transfer-encoding", b"chunked")])
    reading = await chunked.begin()

    with pytest.raises(RateLimitExceeded):
        await read_json_object(Sender(tenant, bodies).request, dict)

    chunked.may_end.set()
    assert await reading == {"a": 1}


async def test_slow_large_body_keeps_neither_small_ones_nor_other_tenants_waiting() -> None:
    bodies, tenant = LargeBodies(max_tenant=1, max_wait_s=0.01), uuid4()
    reading = await Sender(tenant, bodies).begin()
    small, of_other = Sender(tenant, bodies, b'{"a":1}'), Sender(uuid4(), bodies)
    small.may_end.set()
    of_other.may_end.set()

    assert await read_json_object(small.request, dict) == {"a": 1}
    assert (await read_json_object(of_other.request, dict)).keys() == {"a"}

    reading.cancel()


async def test_refused_large_body_gives_its_place_back() -> None:
    bodies, tenant = LargeBodies(max_tenant=1, max_wait_s=0.01), uuid4()
    for _ in range(2):
        broken = Sender(tenant, bodies, b"x" * (LARGE_BYTES + 1))
        broken.may_end.set()

        with pytest.raises(InvalidRequest):
            await read_json_object(broken.request, dict)
