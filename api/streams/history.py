"""The rest of a stream whose job is over, from what Postgres keeps, bit by bit.

With the stored log (24 h) it is the very events; afterwards, or where no worker lived to store
one, the text as a whole in a `gap`. What a reader has seen of a lost worker may go beyond what was
saved: such an end has a number beyond all that can have been seen.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from tasks.events import Event, EventLogReader, EventType, make_event, make_gap

# Compressed bytes that are read at a time, and bytes of events that are taken out of them at once:
# some 500 events, which take a few ms to send.
PART_BYTES = 256 << 10
TAKE_BYTES = 32 << 10

# The bytes of the stored log from an offset on, at most so many; None if there is none (any more).
ReadPart = Callable[[int, int], Awaitable[bytes | None]]


class History:
    """One reader's. Ends with `done`, or with an error of `read_part`, after which it goes on."""

    def __init__(
        self, read_part: ReadPart, *, output: list[dict[str, Any]] | None, last_seq: int
    ) -> None:
        """`last_seq` is the stored result's: that of `done`, if a log is stored."""
        self._read_part = read_part
        self._output = output
        self._last_seq = last_seq
        self._log = EventLogReader()
        self._offset = 0  # of the log, in bytes
        self._is_read = False  # to its end
        self._has_given = False

    async def next(self, cursor: int) -> list[Event]:
        """Some of the events after a number, or none, which is not the end."""
        if cursor > self._last_seq:
            return [await self._repeated_end()]
        events = await self._take()
        if events is None:
            return self._whole_text(self._last_seq)
        newer = [event for event in events if event.seq > cursor]
        if newer and newer[0].seq > cursor + 1 and newer[0].type != EventType.GAP:
            return self._whole_text(self._last_seq)
        self._has_given = self._has_given or bool(newer)
        if self._is_read and not (newer and newer[-1].type == EventType.DONE):
            newer.append(self._end(newer[-1].seq if newer else cursor))
        return newer

    def _end(self, last_seq: int) -> Event:
        """Of a log that ends without, or for a reader that had it already and asks again."""
        return _marker(last_seq + 1 if self._has_given else last_seq)

    async def _take(self) -> list[Event] | None:
        """More of the log; None if it is gone."""
        while (events := self._log.take(TAKE_BYTES)) is None:
            part = await self._read_part(self._offset, PART_BYTES)
            if part is None:
                return None
            self._offset += len(part)
            self._log.feed(part)
            if not part:
                self._is_read = True
                return self._log.end()
        return events

    async def _repeated_end(self) -> Event:
        """For who stands behind the log, after the text as a whole or by a number that was made up:
        no number of ours is beyond the end. It hears of the end alone, under the number it has.
        """
        if await self._take() is not None:
            return _marker(self._last_seq)
        return self._whole_text(self._last_seq)[-1]

    def _whole_text(self, seq: int) -> list[Event]:
        if not self._output:
            return [_marker(seq + 1)]
        texts = [choice["text"] for choice in self._output]
        return [make_gap(seq + 1, texts), _marker(seq + 2)]


def _marker(seq: int) -> Event:
    return make_event(seq, EventType.DONE)
