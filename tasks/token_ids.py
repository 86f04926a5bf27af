"""Token ids as bytes: little-endian uint32, as Postgres stores them."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable

_UINT32 = "I"
assert array(_UINT32).itemsize == 4


def pack_token_ids(ids: Iterable[int]) -> bytes:
    """Four bytes a token. Raises OverflowError for an id outside uint32."""
    packed = array(_UINT32, ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_token_ids(data: bytes) -> list[int]:
    """The ids of pack_token_ids."""
    packed = array(_UINT32)
    packed.frombytes(data)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()
