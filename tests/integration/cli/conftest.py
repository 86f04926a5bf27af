"""The command as a process, and folders for state that the embedded services can live in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


def command_environment(state: Path, **extra: str) -> dict[str, str]:
    """Nothing of the machine's own Millrace."""
    kept = {name: value for name, value in os.environ.items() if "MILLRACE_" not in name}
    return {**kept, "MILLRACE_STATE_DIR": str(state), **extra}


@pytest.fixture
def millrace(tmp_path: Path) -> Run:
    """Runs the command with a state folder of its own. Keyword arguments are environment."""

    def run(
        *arguments: str, stdin: str | None = None, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            env=command_environment(tmp_path / "state", **extra),
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def assert_one_line_error(
    result: subprocess.CompletedProcess[str], *words: str, code: int = 1
) -> None:
    assert result.returncode == code, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert all(word in result.stderr for word in words), result.stderr


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """Not tmp_path: its parents are closed to the unprivileged user that Postgres runs as."""
    parent = Path(tempfile.mkdtemp(prefix="millrace-state-"))
    parent.chmod(0o755)
    yield parent / "state"
    shutil.rmtree(parent, ignore_errors=True)
