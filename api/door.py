"""Where a request waits before anything is done for it.

A thousand may come at the same moment. Each has to be routed, its key looked at and its parameters
read before it is known what it is about, which together would hold the event loop for a second. So
a request has its tenant's turn from the start; strangers, whose keys this process hasn't seen or
doesn't believe, share one lane.
"""

from __future__ import annotations

from uuid import UUID

from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import error_response
from api.limits.turns import Turn
from api.services import Services
from api.settings import HEALTH_PATHS
from tasks.errors import RateLimitExceeded, ServiceError, ServiceUnavailable

STRANGERS = UUID(int=0)  # no tenant's id


class DoorMiddleware:
    """Takes each request's turn. Plain ASGI, inside of RequestMiddleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                await _enter(scope)
            except ServiceError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _enter(scope: Scope) -> None:
    services: Services = scope["app"].state.services
    services.collector.enter()
    scope["state"]["held"].callback(services.collector.leave)
    tenant_id = services.authenticator.presumed_tenant(_authorization(scope))
    turn = scope["state"]["turn"] = Turn(services.turns, tenant_id or STRANGERS)
    scope["state"]["held"].callback(turn.give_back)
    if scope["path"].encode() in HEALTH_PATHS:
        return  # the process is asked, whoever else is waiting
    try:
        await turn.take()
    except RateLimitExceeded as error:
        if tenant_id is None:
            message = "Too many requests whose keys are not known yet wait here."
            raise ServiceUnavailable(message) from error
        raise


def _authorization(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            return bytes(value).decode("latin-1")
    return None
