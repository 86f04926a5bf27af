"""Token ids as Postgres stores them."""

from __future__ import annotations

import sys

import pytest

from tasks.token_ids import pack_token_ids, unpack_token_ids


@pytest.mark.parametrize("ids", [[], [0], [1, 2, 3], [2**32 - 1, 0, 151_643]])
def test_packed_ids_are_read_back(ids: list[int]) -> None:
    assert unpack_token_ids(pack_token_ids(ids)) == ids


def test_format_is_four_little_endian_bytes_a_token() -> None:
    assert pack_token_ids([1, 0x01020304]) == bytes([1, 0, 0, 0, 4, 3, 2, 1])


def test_bytes_are_turned_where_the_machine_has_them_the_other_way_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_here = pack_token_ids([1, 0x01020304])
    monkeypatch.setattr(sys, "byteorder", {"little": "big", "big": "little"}[sys.byteorder])

    turned = pack_token_ids([1, 0x01020304])

    assert turned == b"".join(as_here[at : at + 4][::-1] for at in (0, 4))
    assert unpack_token_ids(turned) == [1, 0x01020304]


@pytest.mark.parametrize("token_id", [-1, 2**32])
def test_id_outside_uint32_is_refused(token_id: int) -> None:
    with pytest.raises(OverflowError):
        pack_token_ids([token_id])


def test_cut_off_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of item size"):
        unpack_token_ids(b"\x01\x00\x00")
