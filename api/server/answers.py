"""Answers that no application gives."""

from __future__ import annotations

from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.errors import error_response
from tasks.errors import ServiceUnavailable


async def full(scope: Scope, receive: Receive, send: Send) -> None:
    """The application while no more requests can be carried."""
    error = ServiceUnavailable("This server can't carry more requests at the moment.")
    error.headers = {"Connection": "close"}
    await error_response(error)(scope, receive, send)


def raw(response: Response) -> bytes:
    """As it goes over the wire, from whoever is no application, and closes the connection."""
    status = HTTPStatus(response.status_code)
    head = [f"HTTP/1.1 {status.value} {status.phrase}".encode(), b"connection: close"]
    head += [name + b": " + value for name, value in response.raw_headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + bytes(response.body)
