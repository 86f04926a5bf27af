"""An API process whose job streams are sse-starlette's own: `python -m benchmarks.http --stock`.

The same hub, reader and encoder, over the library's response as it is meant to be used: an
asynchronous iterator, its pings, its four tasks a stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping

from sse_starlette import EventSourceResponse, ServerSentEvent

from api import submitting
from api.server.__main__ import main
from api.settings import HEARTBEAT_S
from api.streams.encoder import LINE_END, Encoder, join_bytes
from api.streams.hub import StreamHub
from api.streams.open_streams import OpenStreams
from api.streams.reader import Reader


class StockResponse(EventSourceResponse):
    """Follows a job, with none of our time limits."""

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
        del streams, max_age_s, on_left
        self._news = asyncio.Event()
        self._reader = reader
        super().__init__(
            self._events(hub, reader, encoder),
            headers=headers,
            sep=LINE_END,
            ping=HEARTBEAT_S,
            ping_message_factory=lambda: ServerSentEvent(comment="", sep=LINE_END),
        )

    def wake(self) -> None:
        self._news.set()

    def wake_for_log(self) -> None:
        self._reader.note_log_may_have_more()
        self._news.set()

    def wake_after_reconnect(self) -> None:
        self._reader.note_reconnect(time.monotonic())
        self._news.set()

    def tick(self, now: float) -> None:
        if self._reader.tick(now):
            self._news.set()

    async def _events(
        self, hub: StreamHub, reader: Reader, encoder: Encoder
    ) -> AsyncIterator[bytes]:
        reader.attach(await hub.join(reader.job_id, self), time.monotonic())
        try:
            while not reader.is_done:
                self._news.clear()
                while events := await reader.next():
                    yield join_bytes(encoder.encode(events, reader.finished))
                await self._news.wait()
        finally:
            hub.leave(reader.job_id, self)


if __name__ == "__main__":
    vars(submitting)["EventStreamResponse"] = StockResponse
    main()
