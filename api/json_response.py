"""JSON answers, by orjson."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from starlette.responses import Response


class JsonResponse(Response):
    """Content is anything orjson takes."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


def page_of(items: Sequence[dict[str, Any]], *, limit: int, has_more: bool = False) -> JsonResponse:
    """OpenAI's list of objects that have an id. Ask for one more than `limit` to know whether there
    are more, or say so.
    """
    page = items[:limit]
    return JsonResponse(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": has_more or len(items) > limit,
        }
    )
