"""Text as Postgres takes it: neither NUL nor half of a surrogate pair, in `jsonb` no NaN either.

Decided once a connection, for whatever is written through it. Where clients' requests are written,
such text is refused: the client can send another. Elsewhere it is what we say ourselves, a message
that quotes a client or a model's output; it must get in, so it is mended.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import orjson
from psycopg import BaseConnection, DataError
from psycopg.abc import Buffer
from psycopg.types.json import set_json_dumps
from psycopg.types.string import StrDumperUnknown

from tasks.errors import InvalidRequest

REPLACEMENT = "\ufffd"

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_ESCAPED_BACKSLASH, _NUL_ESCAPE = b"\\\\", b"\\u0000"


def refuse_unstorable(connection: BaseConnection[Any]) -> None:
    """Parameters with such text raise InvalidRequest, and nothing is sent."""
    connection.adapters.register_dumper(str, _Refusing)
    set_json_dumps(_refusing_json, connection)


def mend_unstorable(connection: BaseConnection[Any]) -> None:
    """Such text is written with U+FFFD for each character that can't be, null for each NaN."""
    connection.adapters.register_dumper(str, _Mending)
    set_json_dumps(_mended_json, connection)


def mended(value: Any) -> Any:
    """A text or JSON value as near to this one as Postgres can hold."""
    if isinstance(value, str):
        return _UNSTORABLE.sub(REPLACEMENT, value)
    if isinstance(value, dict):
        return {mended(key): mended(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mended(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class _Refusing(StrDumperUnknown):
    def dump(self, obj: str) -> Buffer | None:
        try:
            return super().dump(obj)
        except (DataError, UnicodeEncodeError):
            raise _refusal() from None


class _Mending(StrDumperUnknown):
    def dump(self, obj: str) -> Buffer | None:
        try:
            return super().dump(obj)
        except (DataError, UnicodeEncodeError):
            return super().dump(mended(obj))


def _refusing_json(document: Any) -> bytes | str:
    if (plain := _plain_json(document)) is not None:
        return plain
    dumped = json.dumps(document)
    if json.dumps(mended(document)) != dumped:
        raise _refusal()
    return dumped


def _mended_json(document: Any) -> bytes | str:
    dumped = _plain_json(document)
    return dumped if dumped is not None else json.dumps(mended(document))


def _plain_json(document: Any) -> bytes | None:
    """None if it may hold what can't be stored, or numbers beyond 64 bits. NaN becomes null."""
    try:
        dumped = orjson.dumps(document)
    except orjson.JSONEncodeError:
        return None
    # Quicker than a pattern, which takes 60 ms for a MiB and stops all other threads meanwhile.
    return None if _NUL_ESCAPE in dumped.replace(_ESCAPED_BACKSLASH, b"") else dumped


def _refusal() -> InvalidRequest:
    return InvalidRequest("The request holds a NUL or a lone surrogate.")
