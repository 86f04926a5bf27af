"""Logging of the background processes: one JSON object a line, never a prompt or a completion."""

from __future__ import annotations

import contextlib
import logging
import re

import structlog
from structlog.typing import EventDict

# What Postgres says behind an error's first line quotes rows: up to the next error of a traceback.
_QUOTED_ROWS = re.compile(
    r"\n[ |]*(?:DETAIL|CONTEXT): .*?"
    r"(?=\n[ |]*\n[ |]*(?:During handling of|The above exception)|\Z)",
    re.DOTALL,
)


def configure_logs(level: int = logging.INFO) -> None:
    """Set structlog and the standard library's root logger up. Call once a process."""
    logging.basicConfig(level=level, format="%(levelname)s %(name)s %(message)s")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            without_rows,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: LineLogger(),
        cache_logger_on_first_use=True,
    )


class LineLogger(structlog.PrintLogger):
    """Writes lines to a file, by default to standard output.

    A line that can't be written (a full disk, nobody behind the pipe) is dropped: what says it, a
    heartbeat or the answer to a request, must not end for that. As the standard library's handlers.
    """

    def msg(self, message: str) -> None:
        with contextlib.suppress(OSError):
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def without_rows(_logger: object, _method: str, event: EventDict) -> EventDict:
    """A processor of structlog: no text of an event quotes a row of Postgres."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = _QUOTED_ROWS.sub("", value)
    return event
