"""Reads request bodies. Everything that could hurt a later stage is refused here, with a 400.

orjson refuses NaN, Infinity, numbers beyond a double, invalid UTF-8, lone surrogates and a byte
order mark by itself. Of repeated keys the last counts.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import orjson
from starlette.requests import ClientDisconnect, Request

from api.content_coding import Inflater, codings_of
from api.limits.bodies import LARGE_BYTES, TenantBodies
from api.long_work import LongWork
from api.media_types import check_is_json
from api.settings import MAX_BODY_BYTES, MAX_JSON_DEPTH, MAX_JSON_VALUES
from tasks.errors import InvalidRequest

T = TypeVar("T")

_NUL_ESCAPE = b"\\u0000"
# Strings, which are skipped, and what stands before a value; an empty list or object has none.
_STRUCTURE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[,:]|[\[{](?!\s*+[\]}])', re.DOTALL)
_SEPARATORS = frozenset({b",", b":", b"[", b"{"})


async def read_json_object(request: Request, read: Callable[[dict[str, Any]], T]) -> T:
    """What `read` makes of the body, a JSON object, in the request's turn. The middleware bounds
    its size. A long one is read in another thread, so `read` uses nothing of the event loop's.

    Raises InvalidRequest, RateLimitExceeded if the turn, or a large body's place, doesn't come in
    time, and what `read` does.
    """
    check_is_json(request)
    codings = codings_of(request)
    if not codings and not _may_be_large(request):
        return await _parse(request, await _receive(request), read)
    bodies: TenantBodies = request.state.bodies
    inflater = Inflater(codings, MAX_BODY_BYTES)
    async with bodies.place():
        return await _parse(request, await _receive(request, inflater, bodies.pace), read)


def _may_be_large(request: Request) -> bool:
    length = request.headers.get("content-length")
    return length is None or not length.isdecimal() or int(length) > LARGE_BYTES


async def _receive(
    request: Request,
    inflater: Inflater | None = None,
    pace: Callable[[int], Awaitable[None]] | None = None,
) -> bytes:
    chunks = []
    try:
        async for chunk in request.stream():
            if inflater is None or pace is None:
                chunks.append(chunk)
                continue
            for piece in inflater.feed(chunk):
                await pace(inflater.cost_of(piece))
                chunks.append(piece)
    except ClientDisconnect:
        raise InvalidRequest("The client left before it had sent the body.") from None
    if inflater is not None:
        inflater.finish()
    return b"".join(chunks)


async def _parse(request: Request, body: bytes, read: Callable[[dict[str, Any]], T]) -> T:
    await request.state.turn.take()
    long_work: LongWork = request.app.state.services.long_work
    return await long_work.unless_short(len(body), lambda: read(parse_json_object(body)))


def parse_json_object(body: bytes) -> dict[str, Any]:
    """A JSON object that is safe to handle. Raises InvalidRequest."""
    num_marks = _count(body, b",:[{")  # each stands before a value, or in a string
    if num_marks > MAX_JSON_VALUES and _has_too_many_values(body):  # making them takes seconds
        raise InvalidRequest(f"The body holds more than {MAX_JSON_VALUES} values.")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # orjson's message names the place and the kind of mistake, never the text.
        raise InvalidRequest(f"The body is not valid JSON: {error.msg}.") from None
    if not isinstance(document, dict):
        raise InvalidRequest("The body must be a JSON object.")
    _check_shape(body, document, num_marks)
    return document


def _has_too_many_values(body: bytes) -> bool:
    """Whether what stands outside of strings separates or begins more values than may be. An
    invalid body may have any answer.
    """
    num_values = 0
    for found in _STRUCTURE.finditer(body):
        num_values += found[0] in _SEPARATORS
        if num_values > MAX_JSON_VALUES:
            return True
    return False


def _check_shape(body: bytes, document: dict[str, Any], num_marks: int) -> None:
    # May also be an escaped backslash before `u0000`. Looking for one byte is far quicker.
    may_hold_nul = b"\\" in body and _NUL_ESCAPE in body
    is_flat = num_marks <= MAX_JSON_DEPTH or _count(body, b"[{") <= MAX_JSON_DEPTH
    if may_hold_nul or not is_flat:
        _walk(document)


def _count(body: bytes, characters: bytes) -> int:
    """How often any of them occurs, in one go."""
    return len(body) - len(body.translate(None, characters))


def _walk(document: dict[str, Any]) -> None:
    """Breadth first, a level at a time, so that depth needs no recursion."""
    level: list[Any] = [document]
    num_values = 0
    for _ in range(MAX_JSON_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, str) and "\0" in value:
                raise InvalidRequest("Strings must not contain NUL characters.")
            if isinstance(value, dict):
                below.extend(value)
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
        num_values += len(below)
        if num_values > MAX_JSON_VALUES:
            raise InvalidRequest(f"The body holds more than {MAX_JSON_VALUES} values.")
        if not below:
            return
        level = below
    if any(isinstance(value, dict | list) for value in level):
        raise InvalidRequest(f"The body is nested more than {MAX_JSON_DEPTH} levels deep.")
    if any("\0" in value for value in level if isinstance(value, str)):
        raise InvalidRequest("Strings must not contain NUL characters.")
