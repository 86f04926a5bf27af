"""The rest of a stream whose job is over, from what Postgres keeps. Pure.

With the stored log (24 h) it is the very events; afterwards, or where no worker lived to store
one, the text as a whole in a `gap`. What a reader has seen of a lost worker may go beyond what was
saved: the gap then also takes that back.
"""

from __future__ import annotations

from typing import Any

from tasks.events import Event, EventType, decompress_event_log, make_event, make_gap


def remaining_events(
    cursor: int, *, event_log: bytes | None, output: list[dict[str, Any]] | None, last_seq: int
) -> list[Event]:
    """Events after the cursor, the `done` marker at the end. `last_seq` is the stored result's."""
    events = decompress_event_log(event_log) if event_log else []
    if not events or cursor > events[-1].seq:
        return _whole_text(max(cursor, last_seq), output)
    newer = [event for event in events if event.seq > cursor]
    if not newer:  # it had `done` already and asks again
        return [_marker(cursor)]
    if newer[0].seq > cursor + 1 and newer[0].type != EventType.GAP:
        return _whole_text(last_seq, output)
    return newer if newer[-1].type == EventType.DONE else [*newer, _marker(newer[-1].seq + 1)]


def _whole_text(seq: int, output: list[dict[str, Any]] | None) -> list[Event]:
    if not output:
        return [_marker(seq + 1)]
    return [make_gap(seq + 1, [choice["text"] for choice in output]), _marker(seq + 2)]


def _marker(seq: int) -> Event:
    return make_event(seq, EventType.DONE)
