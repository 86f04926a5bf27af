"""Small private files of the state folder. Written whole or not at all, readable by us only."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from cli.stack.child import Account

ROOT = Path(__file__).resolve().parents[2]  # of the installation


def write_private(path: Path, text: str, account: Account | None = None) -> None:
    """Replace a file by one with mode 0600; a crash leaves the old or the new, never a half."""
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if account is not None:
            os.chown(partial, account.uid, account.gid)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """The file's object, or an empty one if there is none."""
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
