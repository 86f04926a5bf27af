"""Ids: UUIDv7 (RFC 9562) in storage, 32 hex digits behind a prefix on the wire."""

from __future__ import annotations

import re
import secrets
import threading
import time
from uuid import UUID

JOB_PREFIX = "job_"
# The same job by the name each dialect gives it.
CHAT_PREFIX = "chatcmpl-"
COMPLETION_PREFIX = "cmpl-"
RESPONSE_PREFIX = "resp_"
FILE_PREFIX = "file-"
BATCH_PREFIX = "batch_"
ENDPOINT_PREFIX = "whk_"  # where webhooks go
EVENT_PREFIX = "evt_"
DELIVERY_PREFIX = "whd_"
PROJECT_PREFIX = "proj_"  # a tenant, where OpenAI says project

# Where a list begins: no id is less, none is greater.
LEAST_ID = UUID(int=0)
GREATEST_ID = UUID(int=2**128 - 1)

_DIGITS = re.compile("[0-9a-f]{32}")
_MS_BITS = 0xFFFF_FFFF_FFFF  # the 48 a UUIDv7 has for its milliseconds

# Two clocks that are kept right differ by less, and one's own is read at once.
_TOLERATED_MS = 1_000

_lock = threading.Lock()
_offset_ms = 0  # of the clock that ids follow, ahead of this machine's
_last_ms_and_seq = 0  # 48 bits of milliseconds, 12 bits of counter


def uuid7() -> UUID:
    """A new time-ordered id. Thread-safe; strictly increasing within a process, until the clock
    that it follows turns out to be behind.
    """
    global _last_ms_and_seq  # noqa: PLW0603
    stamp = (_machine_ms() + _offset_ms) << 12
    with _lock:
        stamp = max(stamp, _last_ms_and_seq + 1)
        _last_ms_and_seq = stamp
    milliseconds, counter = stamp >> 12, stamp & 0xFFF
    return UUID(int=milliseconds << 80 | 7 << 76 | counter << 64 | 2 << 62 | secrets.randbits(62))


def follow_clock(unix_ms: int) -> None:
    """Make ids from now on in the time of another clock, which shows `unix_ms`."""
    global _offset_ms, _last_ms_and_seq  # noqa: PLW0603
    offset_ms = unix_ms - _machine_ms()
    with _lock:
        before_ms = _offset_ms
        _offset_ms = offset_ms if abs(offset_ms) > _TOLERATED_MS else 0
        if _offset_ms < before_ms - _TOLERATED_MS:
            _last_ms_and_seq = 0  # else ids stood still until that clock has caught up


def _machine_ms() -> int:
    return time.time_ns() // 1_000_000


def uuid7_floor(unix_ms: int) -> UUID:
    """The smallest UUIDv7 of a millisecond: a partition bound."""
    return UUID(int=(unix_ms & _MS_BITS) << 80)


def uuid7_unix_ms(id_: UUID) -> int:
    """When a UUIDv7 was made."""
    return id_.int >> 80


def format_job_id(job_id: UUID, prefix: str = JOB_PREFIX) -> str:
    """`job_` and 32 hex digits."""
    return f"{prefix}{job_id.hex}"


def parse_job_id(text: str, prefix: str = JOB_PREFIX) -> UUID | None:
    """The id behind the prefix, None if the text is not one."""
    digits = text.removeprefix(prefix)
    if not text.startswith(prefix) or not _DIGITS.fullmatch(digits):
        return None
    return UUID(hex=digits)


def format_file_id(file_id: UUID) -> str:
    """`file-` and 32 hex digits."""
    return f"{FILE_PREFIX}{file_id.hex}"


def parse_file_id(text: str) -> UUID | None:
    """The id of a file, None if the text is not one."""
    return parse_job_id(text, FILE_PREFIX)


def format_project_id(tenant_id: UUID) -> str:
    """`proj_` and 32 hex digits."""
    return f"{PROJECT_PREFIX}{tenant_id.hex}"
