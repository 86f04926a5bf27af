from __future__ import annotations

import asyncio
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from starlette.types import Message, Receive, Scope, Send

from api.door import STRANGERS, DoorMiddleware
from api.garbage import Collector
from api.limits.turns import give_back_turn
from store.tenant_gate import TenantGate

A, B = uuid4(), uuid4()


class _House:
    """An application behind the door: who is inside, until each is let go."""

    def __init__(self, *, max_turns: int = 1, max_wait_s: float = 10.0) -> None:
        self.gate = TenantGate(max_turns, max_wait_s)
        self.inside: list[str] = []
        self.answers: list[Message] = []
        self.may_leave = asyncio.Event()
        self._door = DoorMiddleware(self._app)
        authenticator = SimpleNamespace(presumed_tenant=self._presumed)
        services = SimpleNamespace(
            authenticator=authenticator, collector=Collector(), turns=self.gate
        )
        self._state = SimpleNamespace(state=SimpleNamespace(services=services))

    @staticmethod
    def _presumed(header: str | None) -> UUID | None:
        return {"Bearer a": A, "Bearer b": B}.get(header or "")

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.inside.append(scope["path"])
        await self.may_leave.wait()

    async def visit(self, path: str, header: str | None = None) -> None:
        headers = [(b"authorization", header.encode())] if header else []
        with ExitStack() as held:
            scope = {
                "type": "http",
                "app": self._state,
                "path": path,
                "headers": headers,
                "state": {"held": held},
            }
            await self._door(scope, _receive, self._send)

    async def _send(self, message: Message) -> None:
        self.answers.append(message)


async def _receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _begin(*visits: Any) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(visit) for visit in visits]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def test_a_request_waits_behind_its_own_tenants_before_anything_is_done_for_it() -> None:
    house = _House()

    tasks = await _begin(
        house.visit("/a1", "Bearer a"),
        house.visit("/a2", "Bearer a"),
        house.visit("/b1", "Bearer b"),
        house.visit("/x1", "Bearer nobody's"),
        house.visit("/x2"),
    )

    assert house.inside == ["/a1", "/b1", "/x1"]
    house.may_leave.set()
    await asyncio.gather(*tasks)
    assert house.inside == ["/a1", "/b1", "/x1", "/a2", "/x2"]
    assert not house.gate._lanes


async def test_health_is_answered_whoever_waits() -> None:
    house = _House()

    tasks = await _begin(house.visit("/x1"), house.visit("/livez"), house.visit("/readyz"))

    assert house.inside == ["/x1", "/livez", "/readyz"]
    house.may_leave.set()
    await asyncio.gather(*tasks)
    assert not house.gate._lanes


async def test_a_turn_that_is_given_back_inside_lets_the_next_one_in() -> None:
    house = _House()
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await house.may_leave.wait()

    house._door = DoorMiddleware(app)
    tasks = await _begin(house.visit("/1", "Bearer a"), house.visit("/2", "Bearer a"))
    assert len(scopes) == 1

    give_back_turn(scopes[0]["state"])
    await _begin()

    assert len(scopes) == 2
    house.may_leave.set()
    await asyncio.gather(*tasks)
    assert not house.gate._lanes


@pytest.mark.parametrize(
    ("header", "lane", "status", "code"),
    [
        ("Bearer a", A, 429, "rate_limit_exceeded"),
        ("Bearer nobody's", STRANGERS, 503, "service_unavailable"),
        (None, STRANGERS, 503, "service_unavailable"),
    ],
)
async def test_who_waits_too_long_is_told_to_come_again(
    header: str | None, lane: UUID, status: int, code: str
) -> None:
    house = _House(max_wait_s=0.01)
    await house.gate.enter(lane)

    await house.visit("/late", header)

    assert house.inside == []
    start, body = house.answers
    assert start["status"] == status
    assert b"retry-after" in dict(start["headers"])
    assert orjson.loads(body["body"])["error"]["code"] == code
    house.gate.leave(lane)
    assert not house.gate._lanes


async def test_what_is_no_request_passes() -> None:
    house = _House()
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    await DoorMiddleware(app)({"type": "lifespan"}, _receive, house._send)

    assert seen == ["lifespan"]
