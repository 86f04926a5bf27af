"""Starting, finding again and ending one process.

A pid alone is never trusted: a record holds the pid and the moment the process started, so a
stale record can't end a stranger that was given the same pid.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

_LAUNCHER = str(Path(__file__).with_name("launch.py"))
_POLL_S = 0.02
_MAX_LINE = 300  # characters of a log line that are shown
# Every process of one stack carries its state folder in this variable; it marks what is ours.
STATE_VARIABLE = "MILLRACE_STATE_DIR"


@dataclass(frozen=True, slots=True)
class Account:
    """The user a process runs as."""

    uid: int
    gid: int


class Child:
    """A process we started, or one found again by its record."""

    def __init__(
        self, pid: int, started: str, process: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.pid = pid
        self.started = started
        self._process = process

    @classmethod
    def find(cls, pid: int, started: str) -> Child | None:
        """The process of a record, or None if it has ended (whoever has its pid now)."""
        return cls(pid, started) if start_moment(pid) == started else None

    @property
    def is_alive(self) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        return start_moment(self.pid) == self.started

    @property
    def exit_code(self) -> int | None:
        """None while it runs, and for a process that we didn't start ourselves."""
        return self._process.poll() if self._process else None

    def send(self, number: int) -> None:
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, timeout_s: float) -> bool:
        """True once it has ended."""
        deadline = time.monotonic() + timeout_s
        while self.is_alive:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def kill(self) -> None:
        """End it and all it started, now."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.wait(5.0)
        kill_group(self.pid)

    def stop(self, number: int = signal.SIGTERM, *, grace_s: float) -> bool:
        """Ask it to end, then make it. True if it ended by itself. Safe to call twice."""
        self.send(number)
        is_ended = self.wait(grace_s)
        self.kill()
        return is_ended


@functools.cache
def _spawner() -> ThreadPoolExecutor:
    """One thread starts every child: the kernel ties the death signal to the starting thread."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    log_path: Path,
    cwd: Path,
    account: Account | None = None,
    death_signal: int | None = None,
) -> Child:
    """Start a process in a session of its own, its output appended to `log_path`."""
    options: dict[str, int] = {}
    if account is not None:
        options |= {"uid": account.uid, "gid": account.gid}
    if death_signal is not None:
        options |= {"death_signal": death_signal, "parent": os.getpid()}
    command = [sys.executable, "-I", "-S", _LAUNCHER, json.dumps(options), *argv]
    log_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        process: subprocess.Popen[bytes] = (
            _spawner()
            .submit(
                subprocess.Popen,
                command,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            .result()
        )
    # Until it is reaped the pid stays ours, so this can't read a stranger's moment.
    return Child(process.pid, start_moment(process.pid) or "ended", process)


def start_moment(pid: int) -> str | None:
    """A text that no two processes with this pid share; None if it has ended or is a zombie."""
    if sys.platform != "linux":
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                return str(process.create_time())
        return None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in parentheses and may hold anything; the fields after it are fixed.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else f"{_boot_id()}:{fields[19]}"


def kill_group(leader_pid: int) -> None:
    """End what a dead leader left behind in its group, if it carries our state folder's mark."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            is_left = process.pid != leader_pid and os.getpgid(process.pid) == leader_pid
            if is_left and STATE_VARIABLE in process.environ():
                process.kill()


def tail(path: Path, num_lines: int = 15) -> str:
    """The last lines of a log, for the one who has to find out why something didn't start."""
    if not path.exists():
        return ""
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - 16_384))
        lines = log.read().decode(errors="replace").splitlines()
    return "\n".join(line[:_MAX_LINE] for line in lines[-num_lines:])


@functools.cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
