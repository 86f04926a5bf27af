"""The logs of a state folder: the supervisor's own, and a bound on all of them."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import structlog

from tasks.logs import LineLogger

MAX_LOG_BYTES = 32 * 1024 * 1024


def log_to(path: Path) -> None:
    """One JSON object a line, appended. For the whole process."""
    file = path.open("a", buffering=1)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=lambda *_: LineLogger(file),
    )


def keep_small(path: Path, max_bytes: int = MAX_LOG_BYTES) -> None:
    """Empty a log that has grown larger than this; NAME.log.1 is what it said until then.

    Whoever writes it goes on, given that the file is open for appending; lines that it writes while
    the last bytes are copied are lost. Without room for a copy there is none.
    """
    try:
        if path.stat().st_size <= max_bytes:
            return
    except FileNotFoundError:
        return
    kept = path.with_name(f"{path.name}.1")
    try:
        kept.unlink(missing_ok=True)  # first: it may be all the room there is
        shutil.copyfile(path, kept)
    except OSError:
        with suppress(OSError):
            kept.unlink(missing_ok=True)  # half of it
        raise
    finally:
        os.truncate(path, 0)
