"""Token ids as Postgres stores them."""

from __future__ import annotations

import pytest

from tasks.token_ids import pack_token_ids, unpack_token_ids


@pytest.mark.parametrize("ids", [[], [0], [1, 2, 3], [2**32 - 1, 0, 151_643]])
def test_packed_ids_are_read_back(ids: list[int]) -> None:
    assert unpack_token_ids(pack_token_ids(ids)) == ids


def test_format_is_four_little_endian_bytes_a_token() -> None:
    assert pack_token_ids([1, 0x01020304]) == bytes([1, 0, 0, 0, 4, 3, 2, 1])


@pytest.mark.parametrize("token_id", [-1, 2**32])
def test_id_outside_uint32_is_refused(token_id: int) -> None:
    with pytest.raises(OverflowError):
        pack_token_ids([token_id])


def test_cut_off_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of item size"):
        unpack_token_ids(b"\x01\x00\x00")
