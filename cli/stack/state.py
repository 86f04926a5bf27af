"""The state folder `.millrace/`: secrets, records of running processes, logs. It survives restarts.

secrets.json      what was generated once: pepper, passwords, the demo key
running.json      who runs now, rewritten at each change; never trusted without its moments
lock              held by the supervisor for as long as it lives
env               shell `export` lines for the user
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cli.stack.child import Child
from cli.stack.files import ROOT, read_json, write_private
from cli.stack.logs import MAX_LOG_BYTES, keep_small


@dataclass(slots=True)
class ProcessRecord:
    """One process as `status`, `down` and the next `up` find it."""

    name: str
    pid: int
    started: str  # the process's own moment, see child.start_moment
    started_at: float  # Unix time, for people
    num_restarts: int = 0
    log: str = ""
    url: str | None = None

    def find(self) -> Child | None:
        return Child.find(self.pid, self.started)


@dataclass(slots=True)
class Running:
    """What a supervisor wrote of itself and its children."""

    state_dir: str
    supervisor: ProcessRecord
    processes: list[ProcessRecord] = field(default_factory=list)
    is_ready: bool = False
    addresses: dict[str, str] = field(default_factory=dict)  # name -> URL, for people
    options: dict[str, Any] = field(default_factory=dict)  # of `up`, as they were at the start

    @property
    def is_alive(self) -> bool:
        return self.supervisor.find() is not None


class StateFolder:
    """Paths and small files of one state folder."""

    def __init__(self, path: Path, *, max_log_bytes: int = MAX_LOG_BYTES) -> None:
        self.path = path.resolve()
        self._max_log_bytes = max_log_bytes

    @classmethod
    def default(cls) -> StateFolder:
        return cls(Path(os.environ.get("MILLRACE_STATE_DIR", ROOT / ".millrace")))

    @property
    def env_path(self) -> Path:
        return self.path / "env"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def create(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.logs.mkdir(mode=0o700, exist_ok=True)

    def bound_logs(self) -> None:
        """Raises OSError, after it has tried each of them."""
        errors = []
        for log in self.logs.glob("*.log"):
            try:
                keep_small(log, self._max_log_bytes)
            except OSError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """True if nobody else holds it. The kernel releases it however the holder ends."""
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def secret(self, name: str) -> str:
        """A secret made on first use."""
        found = self.find_secret(name)
        if found is None:
            found = secrets.token_urlsafe(32)
            self.set_secret(name, found)
        return found

    def find_secret(self, name: str) -> str | None:
        return read_json(self.path / "secrets.json").get(name)

    def set_secret(self, name: str, value: str) -> None:
        path = self.path / "secrets.json"
        write_private(path, json.dumps(read_json(path) | {name: value}, indent=2))

    def read_running(self) -> Running | None:
        """None if there is no record, or one that was copied here with another folder."""
        record: dict[str, Any] = read_json(self.path / "running.json")
        if record.get("state_dir") != str(self.path):
            return None
        supervisor = ProcessRecord(**record.pop("supervisor"))
        processes = [ProcessRecord(**process) for process in record.pop("processes")]
        return Running(supervisor=supervisor, processes=processes, **record)

    def write_running(self, running: Running) -> None:
        write_private(self.path / "running.json", json.dumps(asdict(running), indent=2))

    def clear_running(self) -> None:
        (self.path / "running.json").unlink(missing_ok=True)
