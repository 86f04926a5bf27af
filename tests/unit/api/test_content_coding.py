from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Sequence

import pytest
from starlette.requests import Request

from api.content_coding import ACCEPTED, PIECE_BYTES, SPARE_FRAMES, Inflater, codings_of
from tasks.errors import InvalidRequest, RequestTooLarge, UnsupportedMediaType

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXT = b'{"model": "tiny", "prompt": "%s"}' % (bytes(range(32, 127)).replace(b'"', b"") * 3_000)
MAX = 1 << 20


def deflated(data: bytes, window_bits: int) -> bytes:
    packer = zlib.compressobj(wbits=window_bits)
    return packer.compress(data) + packer.flush()


def gzip(data: bytes) -> bytes:
    return deflated(data, 31)


def zstd_of(data: bytes) -> bytes:
    packed: bytes = zstd.compress(data)
    return packed


def inflate(
    codings: Sequence[str], data: bytes, *, max_bytes: int = MAX, step: int = 1 << 30
) -> bytes:
    inflater = Inflater(codings, max_bytes)
    pieces = []
    for begin in range(0, len(data), step):
        for piece in inflater.feed(data[begin : begin + step]):
            assert len(piece) <= PIECE_BYTES
            pieces.append(piece)
    inflater.finish()
    return b"".join(pieces)


def request(*encodings: str) -> Request:
    headers = [(b"content-encoding", encoding.encode()) for encoding in encodings]
    return Request({"type": "http", "headers": headers})


WAYS = {
    "gzip": (["gzip"], gzip(TEXT)),
    "x-gzip": (["x-gzip"], gzip(TEXT)),
    "deflate": (["deflate"], deflated(TEXT, 15)),
    "deflate without a header": (["deflate"], deflated(TEXT, -15)),
    "zstd": (["zstd"], zstd_of(TEXT)),
    "several": (["gzip", "zstd", "deflate"], deflated(zstd_of(gzip(TEXT)), 15)),
    "members": (["gzip"], gzip(TEXT[:9]) + gzip(b"") + gzip(TEXT[9:])),
    "frames": (["zstd"], zstd_of(TEXT[:9]) + b"\x50\x2a\x4d\x18" + bytes(4) + zstd_of(TEXT[9:])),
}


@pytest.mark.parametrize("step", [1, 1_000, 1 << 30])
@pytest.mark.parametrize(("codings", "data"), WAYS.values(), ids=WAYS)
def test_body_is_what_was_compressed_however_it_comes(
    codings: list[str], data: bytes, step: int
) -> None:
    assert inflate(codings, data, step=step) == TEXT


@pytest.mark.parametrize(("codings", "data"), WAYS.values(), ids=WAYS)
def test_body_that_breaks_off_or_is_corrupt_is_refused(codings: list[str], data: bytes) -> None:
    flipped = bytes([data[0] ^ 0x0F, *data[1:]])
    for broken in (b"", data[:1], data[: len(data) // 2], data[:-1], data + b"more", flipped):
        with pytest.raises(InvalidRequest):
            inflate(codings, broken)


@pytest.mark.parametrize(
    ("codings", "bomb"),
    [
        (["gzip"], gzip(bytes(64 << 20))),
        (["zstd"], zstd_of(bytes(64 << 20))),
        (["deflate"], deflated(bytes(64 << 20), -15)),
        (["gzip", "gzip"], gzip(gzip(bytes(64 << 20)))),
        # What the last coding makes nothing of counts at the first.
        (["deflate", "zstd"], zstd_of(b"\x00\x00\x00\xff\xff" * (4 << 20))),
    ],
    ids=["gzip", "zstd", "deflate", "twice", "for nothing"],
)
def test_bomb_ends_at_the_limit(codings: list[str], bomb: bytes) -> None:
    began = time.process_time()

    with pytest.raises(RequestTooLarge):
        inflate(codings, bomb, max_bytes=MAX)

    assert time.process_time() - began < 0.2


def test_body_of_exactly_the_limit_is_taken() -> None:
    assert len(inflate(["gzip"], gzip(bytes(MAX)))) == MAX
    with pytest.raises(RequestTooLarge):
        inflate(["gzip"], gzip(bytes(MAX + 1)))


@pytest.mark.parametrize("pack", [gzip, zstd_of])
def test_endless_empty_frames_are_refused(pack: type) -> None:
    coding = "gzip" if pack is gzip else "zstd"
    assert inflate([coding], pack(b"") * SPARE_FRAMES) == b""

    with pytest.raises(InvalidRequest):
        inflate([coding], pack(b"") * 20_000)


def test_window_beyond_what_the_web_allows_is_refused() -> None:
    options: dict[int, int] = {
        zstd.CompressionParameter.window_log: 27,
        zstd.CompressionParameter.enable_long_distance_matching: 1,
    }
    packer = zstd.ZstdCompressor(options=options)

    with pytest.raises(InvalidRequest):
        inflate(["zstd"], packer.compress(TEXT) + packer.flush())


def test_codings_are_read_in_the_order_they_were_applied() -> None:
    assert codings_of(request()) == []
    assert codings_of(request("identity")) == []
    assert codings_of(request("GZIP ,\tzstd", "deflate")) == ["gzip", "zstd", "deflate"]


@pytest.mark.parametrize("encoding", ["br", "gzip, br", "gzip,gzip,gzip,gzip", "gzip;q=1"])
def test_other_codings_are_unsupported_and_the_answer_names_those_that_are(encoding: str) -> None:
    with pytest.raises(UnsupportedMediaType) as raised:
        codings_of(request(encoding))

    assert raised.value.headers == {"Accept-Encoding": ACCEPTED}
