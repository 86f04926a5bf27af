"""What every request gets: an id, a bound on its body, an access log line without query or body,
metrics, an answer to our bugs. Plain ASGI, so that streams are never buffered or watched by a task.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack, suppress

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import metrics
from api.errors import error_response, unexpected_response
from api.limits.pace import Pace
from api.limits.turns import give_back_turn
from api.settings import BODY_LIMITS, DROPPED_BYTES_PER_S, MAX_BODY_BYTES
from tasks.errors import RequestTooLarge

log = structlog.get_logger("api.access")

# What is read and thrown away after a refused body, so that the client gets to see the answer: a
# connection closed with unread data is reset.
_DRAIN_BYTES = 64 << 20
_DRAIN_S = 5.0


class RequestMiddleware:
    """Outermost of ours. Nothing a route raises gets past it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        try:
            with exchange.held:
                await self._app(scope, receive, exchange.send)
        except Exception:
            log.exception("request_failed", request_id=exchange.request_id, route=exchange.route)
            if exchange.status is None:
                await unexpected_response()(scope, receive, exchange.send)
        finally:
            exchange.log()


class _Exchange:
    """One request and what was answered."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.request_id = f"req_{uuid.uuid4().hex}"
        self.status: int | None = None
        self._scope = scope
        self._send = send
        self._began = time.monotonic()
        self.held = ExitStack()  # what a request gives back when it has ended, in whatever way
        scope.setdefault("state", {}).update(request_id=self.request_id, held=self.held)

    @property
    def route(self) -> str:
        """The route's template: paths hold ids, and anybody may make up others."""
        return getattr(self._scope.get("route"), "path", "unmatched")

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            give_back_turn(self._scope["state"])
            self.status = message["status"]
            elapsed_s = time.monotonic() - self._began
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.request_id
            headers["openai-processing-ms"] = str(round(elapsed_s * 1000))
            metrics.request_seconds.labels(self.route).observe(elapsed_s)
        await self._send(message)

    def log(self) -> None:
        """One line a request, when it has ended."""
        method = self._scope["method"] if self._scope["method"] in _METHODS else "other"
        metrics.requests.labels(method, self.route, str(self.status or 499)).inc()
        log.info(
            "request",
            request_id=self.request_id,
            method=method,
            route=self.route,
            status=self.status,
            duration_ms=round((time.monotonic() - self._began) * 1000, 1),
        )


_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


class BodyLimitMiddleware:
    """Answers 413 before a body is parsed: by its declared length, else once it is too long.

    Routes in `limits`, by method and path, have a bound of their own.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int = MAX_BODY_BYTES,
        limits: Mapping[tuple[str, str], int] = BODY_LIMITS,
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._limits = limits
        self._drains = Pace(DROPPED_BYTES_PER_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        max_bytes = self._limits.get((scope["method"], scope["path"]), self._max_bytes)
        if _declared_length(scope) > max_bytes:
            await self._refuse(scope, receive, send)
            return
        num_bytes = 0

        async def counting_receive() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > max_bytes:
                await self._drain(receive)
                raise RequestTooLarge
            return message

        await self._app(scope, counting_receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        give_back_turn(scope["state"])
        await self._drain(receive)
        await error_response(RequestTooLarge())(scope, receive, send)

    async def _drain(self, receive: Receive) -> None:
        num_bytes = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                while num_bytes < _DRAIN_BYTES:
                    message = await receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
                    num_bytes += len(message["body"])
                    await self._drains.turn(len(message["body"]))


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0
