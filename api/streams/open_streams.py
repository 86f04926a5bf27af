"""The event streams this process has open: how many, and how all of them end at shutdown."""

from __future__ import annotations

from typing import Protocol

from api import metrics
from api.streams.starts import Starts
from tasks.errors import ServiceUnavailable

# Place-in-queue queries a second this process makes for its waiting streams altogether.
POSITION_QUERIES_PER_S = 50
MIN_POSITION_INTERVAL_S = 2.0


class Stream(Protocol):
    """An open stream."""

    def end(self, how: str) -> None:
        """Close it in an orderly way. The client resumes elsewhere."""
        ...


class OpenStreams:
    """Counts streams and refuses more than the process can carry."""

    def __init__(self, max_streams: int) -> None:
        self._max_streams = max_streams
        self._streams: set[Stream] = set()
        self._is_closing = False
        self.starts = Starts()

    @property
    def num_open(self) -> int:
        """Streams open now."""
        return len(self._streams)

    @property
    def position_interval_s(self) -> float:
        """How often one waiting stream may look up its place in the queue."""
        return max(MIN_POSITION_INTERVAL_S, self.num_open / POSITION_QUERIES_PER_S)

    def add(self, stream: Stream) -> None:
        """Raises ServiceUnavailable at the limit and while shutting down."""
        self.check_room()
        self._streams.add(stream)
        metrics.open_streams.set(self.num_open)

    def check_room(self) -> None:
        """Raises ServiceUnavailable if no stream can be added."""
        if self._is_closing or self.num_open >= self._max_streams:
            raise ServiceUnavailable("This server can't carry more event streams at the moment.")

    def remove(self, stream: Stream) -> None:
        """Safe to call twice."""
        self._streams.discard(stream)
        metrics.open_streams.set(self.num_open)

    def end_all(self) -> None:
        """The process is about to stop."""
        self._is_closing = True
        for stream in tuple(self._streams):
            stream.end("shutdown")
