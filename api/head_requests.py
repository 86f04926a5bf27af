"""HEAD on every route that answers GET: the same answer without its body."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadMiddleware:
    """The application is asked with GET. Once its head is there, it is told that the client left,
    so that it produces nothing for nobody.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        is_answered = False

        async def send_head(message: Message) -> None:
            nonlocal is_answered
            if not is_answered:
                is_answered = True
                await send(message)
                await send({"type": "http.response.body", "body": b""})

        async def receive_until_answered() -> Message:
            return {"type": "http.disconnect"} if is_answered else await receive()

        # A range is for GET alone (RFC 9110, 14.2).
        headers = [header for header in scope["headers"] if header[0] != b"range"]
        asked = {**scope, "method": "GET", "headers": headers}
        await self._app(asked, receive_until_answered, send_head)
