"""A program on a terminal of its own: what a user types, and what the user sees.

with Terminal([sys.executable, "-m", "cli.main", "chat"], env=environment) as terminal:
    terminal.wait_for("> ")
    terminal.type("hello")
    terminal.press(CTRL_D)
    assert terminal.wait() == 0
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Self

from tests.support.waiting import wait_until

CTRL_C = "\x03"
CTRL_D = "\x04"

_SIZE = (30, 100)  # rows, columns
# Colours, cursor movements and modes, and the bell.
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\x07")
_UNFINISHED = re.compile(r"(\x1b(\[[0-9;?]*|\][^\x07]*)?|\r)\Z")

# Makes standard input the terminal of its session, so that Ctrl-C is a signal to it, and becomes
# the program. Tests may themselves run with SIGINT ignored.
_LAUNCHER = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """Standard input is the terminal, and so are output and errors, unless the output is piped."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], pipes_output: bool = False
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *_SIZE, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCHER, *command],
            env={**env, "TERM": "xterm", "INPUTRC": os.devnull},
            stdin=slave,
            stdout=subprocess.PIPE if pipes_output else slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self._shown = ""
        self._read_up_to = 0
        self._piped = b""
        self._threads = [threading.Thread(target=self._read_terminal)]
        if self._process.stdout:
            self._threads.append(threading.Thread(target=self._read, args=[self._process.stdout]))
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._finish()
        os.close(self._master)

    @property
    def shown(self) -> str:
        """All that was ever written to it, without colours and movements."""
        return _CONTROLS.sub("", _UNFINISHED.sub("", self._shown)).replace("\r\n", "\n")

    @property
    def piped(self) -> str:
        """What the program wrote to its standard output, if that is a pipe."""
        return self._piped.decode()

    def type(self, line: str) -> None:
        """A line, with the Enter key."""
        self.press(f"{line}\r")

    def press(self, keys: str) -> None:
        """Keys as they are."""
        os.write(self._master, keys.encode())

    def wait_for(self, text: str, *, timeout_s: float = 20.0) -> None:
        """Until it is shown, after what was waited for before."""
        try:
            wait_until(lambda: text in self.shown[self._read_up_to :], timeout_s=timeout_s)
        except AssertionError:
            raise AssertionError(f"{text!r} is not shown in\n{self.shown}") from None
        self._read_up_to = self.shown.index(text, self._read_up_to) + len(text)

    def wait(self, *, timeout_s: float = 20.0) -> int:
        """For the program's end. Its exit code; all it wrote has been read."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end\n{self.shown}") from None
        self._finish()
        return self._process.returncode

    def _finish(self) -> None:
        self._process.wait()
        for thread in self._threads:
            thread.join()
        if self._process.stdout:
            self._process.stdout.close()

    def _read_terminal(self) -> None:
        """A terminal whose last program has closed it fails to be read."""
        with contextlib.suppress(OSError):
            while data := os.read(self._master, 65536):
                self._shown += data.decode(errors="replace")

    def _read(self, output: IO[bytes]) -> None:
        for line in output:
            self._piped += line
