"""Token ids as bytes: little-endian uint32, as Postgres stores them."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable

_UINT32 = "I"
assert array(_UINT32).itemsize == 4


def pack_token_ids(ids: Iterable[int]) -> bytes:
    """Four bytes a token. Raises OverflowError for an id outside uint32."""
    return _little_endian(array(_UINT32, ids)).tobytes()


def unpack_token_ids(data: bytes) -> list[int]:
    """The ids of pack_token_ids."""
    packed = array(_UINT32)
    packed.frombytes(data)
    return _little_endian(packed).tolist()


def _little_endian(numbers: array[int]) -> array[int]:
    """From this machine's order of bytes to ours, or back."""
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
