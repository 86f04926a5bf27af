"""The supervisor's own log."""

from __future__ import annotations

from pathlib import Path

import structlog


def log_to(path: Path) -> None:
    """One JSON object a line, appended. For the whole process."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=path.open("a", buffering=1)),
    )
