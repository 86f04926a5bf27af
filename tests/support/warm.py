"""Programs of ours as forks of a process that has loaded others' packages: real processes, started
in a tenth of the time. `use_warm_processes` turns it on; without it they are started from nothing.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from cli.stack.child import STATE_VARIABLE, Child, start_moment
from cli.stack.files import ROOT
from cli.stack.processes import ProcessSpec

_POLL_S = 0.005
_is_used = False


def use_warm_processes() -> None:
    """For tests. What is measured by benchmarks starts as it does for users."""
    global _is_used  # noqa: PLW0603 (a switch of the whole run)
    _is_used = sys.platform == "linux"


def end_warm_processes() -> None:
    """With all their forks. Called twice it does nothing."""
    while _parents:
        _parents.popitem()[1].end()


def spawn(spec: ProcessSpec) -> Child:
    """As `spec.spawn`."""
    program, *arguments = spec.argv
    if not _is_used or arguments[0] != "-m":
        return spec.spawn()
    spec.log_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with spec.log_path.open("ab") as log, open(os.devnull, "rb") as nothing:
        fork = _parent(program).fork(
            arguments[1:],
            spec.environment,
            ROOT,
            (nothing, log, log),
            death_signal=spec.death_signal or signal.SIGKILL,
        )
    return Child(fork.pid, start_moment(fork.pid) or "ended", fork)


def run(
    arguments: Sequence[str], *, environment: Mapping[str, str], stdin: str, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` of `python -m` and the arguments."""
    with ExitStack() as stack:
        streams = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        streams[0].write(stdin.encode())
        streams[0].seek(0)
        fork = _parent(sys.executable).fork(arguments, environment, Path.cwd(), streams)
        code = fork.wait(timeout_s)
        texts = [_text(stream) for stream in streams[1:]]
    return subprocess.CompletedProcess(list(arguments), code, *texts)


class Fork(subprocess.Popen[bytes]):
    """What `Child` asks a Popen for; the warm process is its parent and knows its end."""

    def __init__(self, parent: _Parent, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._parent = parent
        self._lock = threading.Lock()

    def __del__(self, *_: object) -> None:
        """Nothing to warn of: the warm process reaps it."""

    def poll(self) -> int | None:
        with self._lock:
            if self.returncode is None:
                self.returncode = self._parent.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (timeout or 1e9)
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired("a fork", timeout or 0)
            time.sleep(_POLL_S)
        return code


class _Parent:
    """The warm process; it ends with this one."""

    def __init__(self, program: str) -> None:
        ours, theirs = socket.socketpair()
        environment = os.environ | {
            STATE_VARIABLE: "warm",  # forks show this environment: see cli.stack.child.kill_group
            # Celery looks at it when it is imported.
            "CELERY_CUSTOM_WORKER_POOL": "workers.inference.pool:TaskPool",
        }
        self._process = subprocess.Popen(
            [program, "-m", "tests.support.warm_process", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=ROOT,
            env=environment,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        self._socket = ours
        self._answers = ours.makefile("rb")
        self._lock = threading.Lock()

    def end(self) -> None:
        self._answers.close()
        self._socket.close()
        self._process.wait()

    def fork(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        streams: Sequence[IO[bytes]],
        death_signal: int = signal.SIGKILL,
    ) -> Fork:
        message = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "folder": str(folder),
            "death_signal": int(death_signal),
        }
        pid = self.ask(message, [stream.fileno() for stream in streams])
        assert pid is not None
        return Fork(self, pid)

    def ask(self, message: Mapping[str, object], fds: Sequence[int] = ()) -> int | None:
        body = json.dumps(message).encode()
        with self._lock:
            socket.send_fds(self._socket, [len(body).to_bytes(8, "big")], fds)
            self._socket.sendall(body)
            answer: int | None = json.loads(self._answers.readline())
        return answer


_parents: dict[str, _Parent] = {}


def _parent(program: str) -> _Parent:
    if program not in _parents:
        _parents[program] = _Parent(program)
    return _parents[program]


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode()
