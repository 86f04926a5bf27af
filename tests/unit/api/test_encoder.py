"""The bytes that streams are made of, and where a dialect's stream can't go on."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from api.dialects.fold import Frame
from api.json_pieces import LaterList, ListPart, Piece
from api.streams.encoder import RETRY_MS, DialectEncoder, NativeEncoder, join_bytes
from api.streams.reader import UNNUMBERED
from tasks.errors import ServiceError, StreamExpired
from tasks.events import Event, EventType, make_event, make_gap
from tests.unit.dialects.test_exact import _job

RETRY = b"retry: %d\n" % RETRY_MS


class _Fold:
    """Each event is a frame of its number; frames can be told."""

    trailer = b"end\n"

    def __init__(self, *, has_native_numbers: bool = True) -> None:
        self.has_native_numbers = has_native_numbers
        self.opening: list[Frame] = []
        self.frames: dict[int, list[Frame]] = {}
        self.errors: list[tuple[int, str]] = []
        self.expires_at: int | None = None
        self.rows: list[Any] = []

    def begin(self) -> list[Frame]:
        return self.opening

    def feed(self, event: Event) -> list[Frame]:
        if event.seq == self.expires_at:
            raise StreamExpired
        return self.frames.get(event.seq, [Frame(event.seq, b"%d" % event.seq)])

    def finish(self, seq: int, row: Any) -> list[Frame]:
        self.rows.append(row)
        return [Frame(seq, b"over")]

    def failure(self, seq: int, error: ServiceError) -> list[Frame]:
        self.errors.append((seq, error.code))
        return [Frame(seq, b"lost", has_id=False)]


def _token(seq: int) -> Event:
    return make_event(seq, EventType.TOKEN, index=0, text="x", token_ids=[seq])


def _done(seq: int) -> Event:
    return make_event(seq, EventType.DONE)


def _encoder(cursor: int = 0, **fields: Any) -> tuple[DialectEncoder, _Fold]:
    fold = _Fold(**fields)
    return DialectEncoder(fold, cursor), fold


def _bytes(encoder: DialectEncoder, *events: Event) -> bytes:
    return join_bytes(encoder.encode(events, {"a": "row"}))


def test_a_native_stream_is_its_events_and_at_last_the_job() -> None:
    encoder, token = NativeEncoder(), _token(1)
    queued = make_event(UNNUMBERED, EventType.QUEUED, position=1)
    row = _job(["hi"]).row
    for name in ("started_at", "deadline_at"):
        row[name] = None
    row["attempt"] = 1

    first = join_bytes(encoder.encode([queued, token], None))
    last = join_bytes(encoder.encode([_done(2)], row))

    assert (encoder.begin(), encoder.is_broken) == (b"", False)
    assert first == (
        b"event: queued\n" + RETRY + b"data: " + queued.data + b"\n\n"
        b"id: 1\nevent: token\ndata: " + token.data + b"\n\n"
    )
    head, data = last.split(b"data: ")
    assert head == b"id: 2\nevent: done\n"
    assert orjson.loads(data)["job"]["output"][0]["text"] == "hi"


def test_a_marker_whose_job_is_unknown_is_sent_as_it_is() -> None:
    [block] = NativeEncoder().encode([_done(2)], None)

    assert block == b"id: 2\nevent: done\n" + RETRY + b"data: " + _done(2).data + b"\n\n"


def test_lists_that_are_read_later_stand_between_bytes() -> None:
    later = LaterList((ListPart(0, lambda: lambda *_: []),))
    encoder, fold = _encoder()
    pieces: list[Piece] = [b"[", later, b"]"]
    fold.frames[1] = [Frame(1, pieces, "kind")]

    encoded = encoder.encode([_token(1)], None)

    assert encoded == [b"id: 1\nevent: kind\n" + RETRY + b"data: ", b"[", later, b"]", b"\n\n"]
    assert join_bytes(encoded).endswith(b"data: []\n\n")


def test_a_dialects_stream_begins_goes_on_and_ends() -> None:
    encoder, fold = _encoder(-1, has_native_numbers=False)
    fold.opening = [Frame(0, b"hello", has_id=False)]
    queued = make_event(UNNUMBERED, EventType.QUEUED, position=1)

    opening = encoder.begin()
    news = _bytes(encoder, queued, _token(1), _token(2))
    last = _bytes(encoder, _done(3), _token(4))

    assert opening == RETRY + b"data: hello\n\n"
    assert news == b"id: 1\ndata: 1\n\nid: 2\ndata: 2\n\n"
    assert last == b"id: 3\ndata: over\n\nend\n"
    assert fold.rows == [{"a": "row"}]
    assert not encoder.is_broken


def test_what_the_client_has_is_not_sent_again() -> None:
    encoder, _ = _encoder(2)

    assert _bytes(encoder, _token(1), _token(2)) == b""
    assert _bytes(encoder, _token(3)) == b"id: 3\n" + RETRY + b"data: 3\n\n"
    assert _bytes(encoder, _token(4)) == b"id: 4\ndata: 4\n\n"


@pytest.mark.parametrize(
    ("cursor", "has_native_numbers", "seen", "gap", "is_lost"),
    [
        (3, True, 0, 9, True),  # events up to 3 are lost, and what they said
        (3, True, 2, 9, True),
        (3, True, 3, 9, False),
        (3, True, 0, 3, False),  # the gap restates what the client has, and ends there
        (3, True, 0, 4, True),
        (3, False, 0, 3, True),  # its numbers are others
        (0, True, 0, 9, False),
        (-1, False, 0, 9, False),
    ],
)
def test_a_gap_in_what_the_client_has_breaks_its_stream(
    cursor: int, has_native_numbers: bool, seen: int, gap: int, is_lost: bool
) -> None:
    encoder, fold = _encoder(cursor, has_native_numbers=has_native_numbers)
    for seq in range(1, seen + 1):
        encoder.encode([_token(seq)], None)

    encoded = _bytes(encoder, make_gap(gap, ["x"]), _token(gap + 1))

    assert encoder.is_broken is is_lost
    assert fold.errors == ([(gap if gap > cursor else cursor + 1, "stream_expired")] * is_lost)
    assert encoded.endswith(b"data: lost\n\nend\n") is is_lost


def test_a_gap_that_says_something_else_breaks_the_stream_behind_what_was_sent() -> None:
    encoder, fold = _encoder()
    fold.expires_at = 2

    encoded = _bytes(encoder, _token(1), make_gap(2, ["y"]), _token(3))

    assert encoded == b"id: 1\n" + RETRY + b"data: 1\n\ndata: lost\n\nend\n"
    assert (encoder.is_broken, fold.errors) == (True, [(2, "stream_expired")])
