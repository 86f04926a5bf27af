"""A job as one JSON object, however long its answers are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import structlog
from psycopg import Error as DatabaseError
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from api.job_view import num_chars
from api.json_pieces import LaterList, Piece, pieces_of
from api.services import Services
from api.settings import SEND_TIMEOUT_S
from store.jobs import JobRow
from tasks.errors import ServiceError

log = structlog.get_logger(__name__)

OK = 200


async def answer(
    services: Services,
    row: JobRow,
    show: Callable[[], Any],
    *,
    status: int = OK,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """What `show` makes of the job. Raises what it raises."""

    def pieces() -> list[Piece]:
        return pieces_of(show())

    made = await services.long_work.unless_short(num_chars(row), pieces)
    head = dict(headers or {})
    if len(made) == 1 and isinstance(made[0], bytes):
        return Response(made[0], status, head, media_type="application/json")
    return _Streamed(
        _bytes(services, row, made), status, headers=head, media_type="application/json"
    )


class _Streamed(StreamingResponse):
    """Ends early when the client leaves or stops reading. A fault of ours cuts the connection, so
    that no client takes a part for the whole.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            log.warning("answer_stalled")
        except (DatabaseError, ServiceError) as error:  # while a list was read
            log.warning("answer_cut", error=type(error).__name__)


async def _bytes(services: Services, row: JobRow, pieces: Sequence[Piece]) -> AsyncIterator[bytes]:
    lists = services.sources.lists(row)
    for piece in pieces:
        if isinstance(piece, LaterList):
            async with aclosing(lists.read(piece)) as bits:
                async for data in bits:
                    yield data
        else:
            yield piece
