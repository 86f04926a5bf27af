"""Takes Content-Encoding off a request's body as it arrives, in pieces of a bounded size.

What a body costs is what it inflates to, so that is what is bounded, at each of its codings: a bomb
ends at the limit. Between two pieces whoever reads may turn to others. A piece takes some 0.2 ms.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from starlette.requests import Request

from tasks.errors import InvalidRequest, RequestTooLarge, UnsupportedMediaType

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ACCEPTED = "gzip, deflate, zstd"  # best understood by clients first
MAX_CODINGS = 3
PIECE_BYTES = 64 << 10  # taken, and given, at once
# A frame takes up to 50 us to begin, whatever it holds, so it counts as much as if it held this.
# Tools that write several write them larger.
FRAME_BYTES = 16 << 10
SPARE_FRAMES = 64
_ZSTD_WINDOW_LOG = 23  # 8 MiB, as RFC 9659 has it for this use
_ZLIB_WINDOW_BITS = 15
_GZIP_WINDOW_BITS = 31


class _Frame(Protocol):
    """What inflates one frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...

    def inflate(self, data: bytes) -> tuple[bytes, bytes]:
        """(A piece, what of the data is to be given again). Raises zlib.error or ZstdError."""
        ...


class _Zlib:
    def __init__(self, window_bits: int) -> None:
        self._inner = zlib.decompressobj(window_bits)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def inflate(self, data: bytes) -> tuple[bytes, bytes]:
        piece = self._inner.decompress(data, PIECE_BYTES)
        return piece, self._inner.unconsumed_tail


class _Zstd:
    def __init__(self) -> None:
        options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
        self._inner = zstd.ZstdDecompressor(options=options)

    @property
    def eof(self) -> bool:
        eof: bool = self._inner.eof
        return eof

    @property
    def unused_data(self) -> bytes:
        unused: bytes = self._inner.unused_data
        return unused

    def inflate(self, data: bytes) -> tuple[bytes, bytes]:
        return self._inner.decompress(data, PIECE_BYTES), b""  # it keeps the rest itself


def _gzip(_: bytes) -> _Frame:
    return _Zlib(_GZIP_WINDOW_BITS)


def _zstd(_: bytes) -> _Frame:
    return _Zstd()


def _deflate(head: bytes) -> _Frame:
    """With zlib's header, as it has to be, or without, as some clients have it."""
    has_header = head[0] & 0x0F == zlib.DEFLATED and int.from_bytes(head[:2], "big") % 31 == 0
    return _Zlib(_ZLIB_WINDOW_BITS if has_header else -_ZLIB_WINDOW_BITS)


# How a frame begins, of which these bytes are needed to tell.
_CODINGS: dict[str, tuple[Callable[[bytes], _Frame], int]] = {
    "gzip": (_gzip, 1),
    "x-gzip": (_gzip, 1),
    "deflate": (_deflate, 2),
    "zstd": (_zstd, 1),
}


class _Stage:
    """One coding of one body."""

    def __init__(self, coding: str, max_bytes: int) -> None:
        self._begin, self._num_head = _CODINGS[coding]
        self._may_follow = coding != "deflate"  # a frame behind another
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._num_frames = 0
        self._frame: _Frame | None = None
        self._head = b""  # of a frame that can't begin yet

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What it inflates to, piece by piece, some of them empty."""
        for begin in range(0, len(data), PIECE_BYTES):
            rest = self._head + data[begin : begin + PIECE_BYTES]
            self._head = b""
            piece = b""
            while self._has_more(rest, piece):
                piece, rest = self._step(rest)
                yield piece

    def finish(self) -> None:
        """Raises InvalidRequest if it broke off."""
        if self._frame is not None or self._head or not self._num_frames:
            raise _corrupt()

    def _has_more(self, rest: bytes, last: bytes) -> bool:
        if self._frame is not None:
            return bool(rest or last)  # what it gave may not have been all
        if len(rest) < self._num_head:
            self._head = rest
            return False
        return True

    def _step(self, data: bytes) -> tuple[bytes, bytes]:
        if self._frame is None:
            self._frame = self._next_frame(data)
        try:
            piece, rest = self._frame.inflate(data)
        except (zlib.error, zstd.ZstdError):
            raise _corrupt() from None
        self._num_bytes += len(piece)
        if self._num_bytes > self._max_bytes:
            raise RequestTooLarge
        if self._frame.eof:
            rest, self._frame = self._frame.unused_data, None
        return piece, rest

    def _next_frame(self, head: bytes) -> _Frame:
        if self._num_frames and not self._may_follow:
            raise _corrupt()
        self._num_frames += 1
        if self._num_frames > SPARE_FRAMES + self._num_bytes // FRAME_BYTES:
            raise InvalidRequest("The compressed body is cut into too many pieces.")
        return self._begin(head)


class Inflater:
    """One body. Without codings it gives what it takes."""

    def __init__(self, codings: Sequence[str], max_bytes: int) -> None:
        """`codings` in the order in which they were applied. `max_bytes` is what it may inflate
        to, whatever its length on the wire.
        """
        self._stages = [_Stage(coding, max_bytes) for coding in reversed(codings)]

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Pieces, to be taken one by one, with a rest between them. Raises InvalidRequest for what
        is corrupt, RequestTooLarge for what is too much.
        """
        return _through(self._stages, data)

    def cost_of(self, piece: bytes) -> int:
        """In bytes, of the work that a piece was."""
        return max(len(piece), FRAME_BYTES) if self._stages else len(piece)

    def finish(self) -> None:
        """Raises InvalidRequest if the body broke off."""
        for stage in self._stages:
            stage.finish()


def _through(stages: Sequence[_Stage], data: bytes) -> Iterator[bytes]:
    if not stages:
        yield data
        return
    for piece in stages[0].feed(data):
        if piece:
            yield from _through(stages[1:], piece)
        else:
            yield piece


def codings_of(request: Request) -> list[str]:
    """Of the body, in the order in which they were applied. Raises UnsupportedMediaType."""
    listed = ",".join(request.headers.getlist("content-encoding")).lower().split(",")
    codings = [coding for name in listed if (coding := name.strip()) not in ("", "identity")]
    if len(codings) > MAX_CODINGS or not _CODINGS.keys() >= set(codings):
        error = UnsupportedMediaType(
            f"The body may have the Content-Encoding {ACCEPTED}, up to {MAX_CODINGS} of them."
        )
        error.headers = {"Accept-Encoding": ACCEPTED}
        raise error
    return codings


def _corrupt() -> InvalidRequest:
    return InvalidRequest("The body is not what its Content-Encoding says, or broke off.")
