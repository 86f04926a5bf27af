"""Lists in queries, in both spellings: `models=a&models=b`, and `models[]=a&models[]=b` as OpenAI's
client writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

_MARK = "[]"


class ListRoute(APIRoute):
    """A route that sees only the first spelling, which is the documented one."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, behind the translation."""
        handle = super().get_route_handler()

        async def translate(request: Request) -> Response:
            items = request.query_params.multi_items()
            if not any(name.endswith(_MARK) for name, _ in items):
                return await handle(request)
            query = urlencode([(name.removesuffix(_MARK), value) for name, value in items])
            scope = {**request.scope, "query_string": query.encode()}
            return await handle(Request(scope, request.receive))

        return translate
