"""Loaded into a worker under test: its consumer breaks once a file appears, in the middle of its
loop and with an error that is not of the connection.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from celery import bootsteps

from cli.stack.processes import ProcessSpec

_VARIABLE = "TEST_CRASH_FILE"


class CrashWhenAsked(bootsteps.StartStopStep):
    """Looks once a turn of the loop."""

    def register_with_event_loop(self, _consumer: Any, hub: Any) -> None:
        """Called by the consumer before its loop."""
        hub.on_tick.add(_look)


def loaded_into(spec: ProcessSpec, crash_file: Path) -> ProcessSpec:
    """The same worker, which crashes when the file is there."""
    at = spec.argv.index("-I") + 1
    argv = (*spec.argv[:at], f"{spec.argv[at]},{__name__}", *spec.argv[at + 1 :])
    return replace(spec, argv=argv).with_environment({_VARIABLE: str(crash_file)})


def _look() -> None:
    if Path(os.environ[_VARIABLE]).exists():
        raise RuntimeError("asked to crash")


if _VARIABLE in os.environ:
    from tasks.app import app

    app.steps["consumer"].add(CrashWhenAsked)
