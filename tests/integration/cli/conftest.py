"""Folders for state that the embedded services can live in, also when the tests run as root."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """Not tmp_path: its parents are closed to the unprivileged user that Postgres runs as."""
    parent = Path(tempfile.mkdtemp(prefix="millrace-state-"))
    parent.chmod(0o755)
    yield parent / "state"
    shutil.rmtree(parent, ignore_errors=True)
