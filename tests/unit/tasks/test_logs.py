"""What never gets into a log, and what a log that can't be written costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import structlog

from tasks.logs import without_rows

SPEAKER = """
import structlog
from tasks.logs import configure_logs
configure_logs()
log = structlog.get_logger()
try:
    raise RuntimeError("of the work")
except RuntimeError:
    log.exception("step_failed")
for name in ("debug", "info", "warning", "error", "critical"):
    getattr(log, name)("said", text="x" * 10_000)
open("went_on", "w").close()
"""

CANARY = "kanarienvogel"
REFUSED = f"""new row violates check constraint "c"
DETAIL:  Failing row contains (1, {CANARY}
and a second line of {CANARY}).
CONTEXT:  COPY t, line 1: {CANARY}"""


def traceback_of(raise_: type[Exception]) -> str:
    try:
        try:
            raise ValueError(REFUSED)
        except ValueError as error:
            raise raise_(REFUSED) from error
    except Exception:
        event = structlog.processors.format_exc_info(None, "error", {"exc_info": True})
        return str(without_rows(None, "error", event)["exception"])


def test_a_traceback_names_the_rule_that_was_broken_and_quotes_no_row() -> None:
    text = traceback_of(OSError) + traceback_of(RuntimeError)

    assert CANARY not in text
    assert text.count("ValueError: new row violates check constraint") == 2
    assert text.count("The above exception was the direct cause") == 2
    assert "RuntimeError: new row violates check constraint" in text


def test_other_fields_are_treated_alike() -> None:
    event = {"event": "lost", "error": REFUSED, "num": 3}

    assert without_rows(None, "info", event) == {
        "event": "lost",
        "error": 'new row violates check constraint "c"',
        "num": 3,
    }


def speak_to(descriptor: int, folder: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", SPEAKER],
        stdout=descriptor,
        stderr=descriptor,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
        check=False,  # what is left in a buffer can't be written at the end either
    )


def test_a_full_disk_costs_lines_and_not_the_work_that_says_them(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        speak_to(full.fileno(), tmp_path)

    assert (tmp_path / "went_on").exists()


def test_nor_does_a_pipe_that_nobody_reads(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        speak_to(writer, tmp_path)
    finally:
        os.close(writer)

    assert (tmp_path / "went_on").exists()
