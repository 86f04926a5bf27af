"""From a job's events to the bytes of a stream: in our own words, or in those of a dialect.

What stock decoders forbid: a block without JSON data. So `retry:` stands inside the first block,
and a heartbeat is a lone comment line with one newline, which dispatches nothing.

A block's head is sse-starlette's where there is one a stream. The heads of events are our own: the
library's encoder takes some sixty times as long, and data are one line of JSON, in pieces at times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from sse_starlette import ServerSentEvent

from api.dialects.fold import Fold, Frame
from api.job_view import job_object
from api.json_pieces import Piece, pieces_of
from api.streams.reader import UNNUMBERED
from store.jobs import JobRow
from tasks.errors import StreamExpired
from tasks.events import Event, EventType

RETRY_MS = 1_000  # how long a browser waits before it resumes
LINE_END = "\n"


class Encoder(Protocol):
    """One stream's. Not shared."""

    @property
    def shows_position(self) -> bool:
        """Whether it says where a job waits."""
        ...

    @property
    def is_broken(self) -> bool:
        """Whether the stream can't go on: what was encoded last ends it."""
        ...

    def begin(self) -> bytes:
        """What is sent before any event."""
        ...

    def encode(self, events: Sequence[Event], finished: JobRow | None) -> list[Piece]:
        """Events as blocks. `finished` is the row of the job once `done` is among them."""
        ...


class NativeEncoder:
    """Our own events, one block each."""

    shows_position = True
    is_broken = False

    def __init__(self) -> None:
        self._blocks = _Blocks()

    def begin(self) -> bytes:
        """Nothing."""
        return b""

    def encode(self, events: Sequence[Event], finished: JobRow | None) -> list[Piece]:
        """Events outside the numbering have no `id:`, so that a client's last id stays."""
        pieces: list[Piece] = []
        for event in events:
            seq = None if event.seq == UNNUMBERED else event.seq
            pieces += self._blocks.block(_data(event, finished), name=event.type, seq=seq)
        return pieces


class DialectEncoder:
    """A dialect's frames. The fold sees all events from the first on, since its state depends on
    them; the client gets what is behind its cursor.
    """

    shows_position = False

    def __init__(self, fold: Fold, cursor: int) -> None:
        """`cursor` is the number of the last frame the client has, in the dialect's numbering."""
        self.is_broken = False
        self._fold = fold
        self._cursor = cursor
        self._last_seq = cursor if cursor <= 0 else 0  # of the frames made so far
        self._blocks = _Blocks()

    def begin(self) -> bytes:
        """What the dialect says before the job starts."""
        return join_bytes(self._pieces(self._fold.begin()))

    def encode(self, events: Sequence[Event], finished: JobRow | None) -> list[Piece]:
        """Frames of events; at the end of the job, or where history is lost, the trailer too."""
        pieces: list[Piece] = []
        for event in events:
            if event.seq == UNNUMBERED:
                continue
            if self._is_lost(event):
                return pieces + self._break(event)
            if event.type == EventType.DONE:
                assert finished is not None
                last = self._pieces(self._fold.finish(event.seq, finished))
                return [*pieces, *last, self._fold.trailer]
            try:
                pieces += self._pieces(self._fold.feed(event))
            except StreamExpired:
                return pieces + self._break(event)
        return pieces

    def _is_lost(self, event: Event) -> bool:
        """Whether a gap stands between what we know and what the client has."""
        if event.type != EventType.GAP or self._last_seq >= self._cursor:
            return False
        return not (self._fold.has_native_numbers and event.seq <= self._cursor)

    def _break(self, event: Event) -> list[Piece]:
        self.is_broken = True
        error = StreamExpired("The events that this stream continues are lost.")
        frames = self._fold.failure(max(event.seq, self._cursor + 1), error)
        return [*self._pieces(frames), self._fold.trailer]

    def _pieces(self, frames: Iterable[Frame]) -> list[Piece]:
        pieces: list[Piece] = []
        for frame in frames:
            self._last_seq = max(self._last_seq, frame.seq)
            if frame.seq > self._cursor:
                seq = frame.seq if frame.has_id else None
                pieces += self._blocks.block(frame.data, name=frame.event, seq=seq)
        return pieces


class _Blocks:
    """One stream's. The first says `retry:` too."""

    def __init__(self) -> None:
        self._is_first = True

    def block(
        self, data: bytes | Sequence[Piece], *, name: str | None, seq: int | None
    ) -> Sequence[Piece]:
        head = _first_head(name, seq) if self._is_first else _head(name, seq)
        self._is_first = False
        if isinstance(data, bytes):
            return (b"%bdata: %b\n\n" % (head, data),)
        return (b"%bdata: " % head, *data, b"\n\n")


def join_bytes(pieces: Sequence[Piece]) -> bytes:
    """Pieces of which none is to be read."""
    return b"".join(piece for piece in pieces if isinstance(piece, bytes))


def _data(event: Event, finished: JobRow | None) -> bytes | Sequence[Piece]:
    """The marker at the end stands for the job object."""
    if event.type != EventType.DONE or finished is None:
        return event.data
    return pieces_of({"job": job_object(finished)})


def _first_head(name: str | None, seq: int | None) -> bytes:
    number = None if seq is None else str(seq)
    head = ServerSentEvent(event=name, id=number, retry=RETRY_MS, sep=LINE_END).encode()
    return head.removesuffix(LINE_END.encode())  # the block goes on


def _head(name: str | None, seq: int | None) -> bytes:
    number = b"" if seq is None else b"id: %d\n" % seq
    return number if name is None else b"%bevent: %b\n" % (number, name.encode())
