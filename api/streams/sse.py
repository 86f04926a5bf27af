"""A job's events as sse-starlette's response, but for how they are sent.

There a stream is four tasks, one of which pings; here an idle one costs the request's own task and
nothing else: that task waits for the client to leave. When there is something to send, a task of
its own sends it and ends. `benchmarks.http --stock` shows what that saves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Self

import structlog
from psycopg import Error as DatabaseError
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from api import metrics
from api.job_view import num_chars
from api.json_pieces import LaterList, Piece
from api.long_work import SHORT_CHARS
from api.settings import HEARTBEAT_S, SEND_TIMEOUT_S
from api.streams.encoder import LINE_END, Encoder
from api.streams.hub import StreamHub
from api.streams.open_streams import OpenStreams
from api.streams.reader import Reader
from tasks.errors import ServiceError
from tasks.events import Event

log = structlog.get_logger(__name__)

# Most jobs start sooner than anybody would want to know where they wait.
FIRST_POSITION_S = 0.25
EVENTS_A_TURN = 64  # with log-probabilities they take a few ms

_HEARTBEAT = b":\n"
_HEADERS = {"Cache-Control": "no-cache, no-store, no-transform"}
# Ends that a client brought about; after the others it comes back, or has all there is.
_LEFT = frozenset({None, "send_timeout"})


class _Pushed:
    """What the library would ask for events: ours are pushed."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        raise StopAsyncIteration


_PUSHED = _Pushed()


class EventStreamResponse(EventSourceResponse):
    """Streams a job's events until `done`, or until one of the other ends (see the package)."""

    def __init__(
        self,
        *,
        hub: StreamHub,
        streams: OpenStreams,
        reader: Reader,
        encoder: Encoder,
        max_age_s: float,
        headers: Mapping[str, str] | None = None,
        on_left: Callable[[], None] | None = None,
    ) -> None:
        """`on_left` is called when the client goes before the end."""
        super().__init__(_PUSHED, headers=_HEADERS | dict(headers or {}), sep=LINE_END)
        del self.headers["connection"]  # the server's word: it may be about to stop
        self._encoder = encoder
        self._on_left = on_left
        self._hub = hub
        self._streams = streams
        self._reader = reader
        self._expires_at = time.monotonic() + max_age_s
        self._sent_at = time.monotonic()
        self._sending_since: float | None = None
        self._position_at = time.monotonic() + streams.position_interval_s
        self._is_open = False  # the head is written: now events may follow
        self._is_woken = False
        self._is_starting = False  # in its turn among the tenant's streams
        self._ending: str | None = None  # how it ends, once that is settled
        self._is_given_up = False
        self._first_position: asyncio.TimerHandle | None = None
        self._sender: asyncio.Task[None] | None = None
        self._request: asyncio.Task[None] | None = None
        self._send: Send | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await super().__call__(scope, receive, send)
            return
        # Everything is taken here and released here: a response may be made and never called.
        self._send, self._request = send, asyncio.current_task()
        self._streams.add(self)
        try:
            await self._open()
            while (await receive())["type"] != "http.disconnect":
                pass
        except asyncio.CancelledError:
            if not self._is_given_up:
                raise
            assert self._request is not None
            self._request.uncancel()
        finally:
            self._close()

    async def _open(self) -> None:
        now = time.monotonic()
        channel = await self._hub.join(self._reader.job_id, self)
        self._reader.attach(channel, now)
        await self._write_start()
        if opening := self._encoder.begin():
            await self._write(opening)
        self._is_open = True
        self.wake()
        if self._waits_visibly:
            loop = asyncio.get_running_loop()
            self._first_position = loop.call_later(FIRST_POSITION_S, self._look_for_position)

    @property
    def _waits_visibly(self) -> bool:
        return self._encoder.shows_position and self._reader.is_waiting

    def _look_for_position(self) -> None:
        if self._reader.is_waiting:
            self._reader.note_position_is_due()
            self.wake()

    def _close(self) -> None:
        if self._first_position:
            self._first_position.cancel()
        self._hub.leave(self._reader.job_id, self)
        self._streams.remove(self)
        if self._sender:
            self._sender.cancel()
        self._is_given_up = True
        if self._ending in _LEFT and self._on_left is not None:
            self._on_left()
        metrics.streams_ended.labels(self._ending or "client_left").inc()

    def wake(self) -> None:
        """Look for events to send."""
        self._is_woken = True
        if self._sender is None and self._is_open and not self._is_starting:
            self._is_starting = True
            self._streams.starts.begin(self._reader.tenant_id, self._start)

    def _start(self) -> None:
        self._is_starting = False
        self._sender = asyncio.create_task(self._send_pending())

    def wake_for_log(self) -> None:
        """Look for events in the log too."""
        self._reader.note_log_may_have_more()
        self.wake()

    def wake_after_reconnect(self) -> None:
        """The subscription is new or anew."""
        self._reader.note_reconnect(time.monotonic())
        self.wake()

    def end(self, how: str) -> None:
        """Close in an orderly way."""
        self._ending = self._ending or how
        self.wake()

    def tick(self, now: float) -> None:
        """Time limits, heartbeat, place in the queue."""
        if self._sending_since is not None and now - self._sending_since > SEND_TIMEOUT_S:
            self._give_up("send_timeout")
        elif now > self._expires_at:
            self.end("max_age")
        elif self._waits_visibly and now >= self._position_at:
            self._position_at = now + self._streams.position_interval_s
            self._look_for_position()
        elif self._reader.tick(now) or now - self._sent_at >= HEARTBEAT_S:
            self.wake()

    async def _send_pending(self) -> None:
        try:
            while self._is_woken and not self._is_given_up:
                self._is_woken = False
                await self._send_once()
        except OSError:
            pass  # the client is gone; receive() says so to the request's task
        except (DatabaseError, ServiceError) as error:  # while a list was read
            log.warning("stream_cut", error=type(error).__name__)
            self._give_up("error")
        except Exception:
            log.exception("stream_failed")
            self._give_up("error")
        finally:
            self._sender = None

    async def _send_once(self) -> None:
        while self._ending is None and (events := await self._reader.next()):
            await self._write_events(events)
            if self._reader.is_done:
                self._ending = "done"
            elif self._encoder.is_broken:
                self._ending = "broken"
        if self._ending is not None:
            await self._write(b"", more_body=False)
            self._give_up(self._ending)
        elif time.monotonic() - self._sent_at >= HEARTBEAT_S:
            await self._write(_HEARTBEAT)

    async def _write_events(self, events: Sequence[Event]) -> None:
        """What a client that follows gets is written at once; in turns what one catches up with,
        and what a crowd follows: one event of a job would keep the loop busy for all of them.
        """
        is_little = len(events) <= EVENTS_A_TURN and self._reader.finished is None
        if is_little and not self._reader.is_crowded:
            await self._write_pieces(self._encoder.encode(events, None))
            return
        for begin in range(0, len(events), EVENTS_A_TURN):
            await self._reader.long_work.turn()
            await self._write_pieces(await self._encode(events[begin : begin + EVENTS_A_TURN]))

    async def _encode(self, events: Sequence[Event]) -> list[Piece]:
        finished = self._reader.finished
        if finished is None or num_chars(finished) <= SHORT_CHARS:
            return self._encoder.encode(events, finished)
        return await self._reader.long_work.run(self._encoder.encode, events, finished)

    async def _write_pieces(self, pieces: Sequence[Piece]) -> None:
        blocks: list[bytes] = []
        for piece in pieces:
            if isinstance(piece, LaterList):
                await self._write(b"".join(blocks))
                blocks.clear()
                async with aclosing(self._reader.read_list(piece)) as bits:
                    async for data in bits:
                        await self._write(data)
            else:
                blocks.append(piece)
        if blocks:
            await self._write(b"".join(blocks))

    async def _write(self, body: bytes, *, more_body: bool = True) -> None:
        assert self._send is not None
        self._sending_since = time.monotonic()
        await self._send({"type": "http.response.body", "body": body, "more_body": more_body})
        self._sending_since = None
        self._sent_at = time.monotonic()

    async def _write_start(self) -> None:
        assert self._send is not None
        start = {"status": self.status_code, "headers": self.raw_headers}
        await self._send({"type": "http.response.start", **start})

    def _give_up(self, how: str) -> None:
        """End the request's task, which waits for a client that may never say that it left."""
        self._ending = self._ending or how
        if not self._is_given_up:
            self._is_given_up = True
            assert self._request is not None
            self._request.cancel()
