"""Work of several requests as a generator of its steps: what to do next, decided without I/O to the
server. The sync and the async client perform the steps and send back what came of each.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx

from millrace.calls import Call
from millrace.uploads import Progress

T = TypeVar("T")


class Sink(Protocol):
    """Takes the bytes of an answer."""

    def start(self, num_bytes: int | None) -> None:
        """The bytes come, or come once more, from the first on."""

    def write(self, data: bytes) -> None:
        """The next of them."""


@dataclass(frozen=True)
class Fetch:
    """Read this path's bytes into the sink, again from the first where a connection broke."""

    path: str
    sink: Sink

    def start(self, response: httpx.Response) -> None:
        """The head of a good answer is there."""
        length = response.headers.get("content-length", "")
        self.sink.start(int(length) if length.isdigit() else None)


@dataclass(frozen=True)
class Pause:
    """Wait so long."""

    seconds: float


Step = Call[Any] | Fetch | Pause
Steps = Generator[Step, Any, T]


class FileSink:
    """A file that is being written. `progress` is told the bytes so far, and in all if known."""

    def __init__(self, path: Path, progress: Progress | None) -> None:
        self._file = path.open("wb")
        self._progress = progress
        self._total = 0

    def start(self, num_bytes: int | None) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._total = num_bytes or 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        if self._progress:
            self._progress(self._file.tell(), self._total)

    def close(self) -> None:
        self._file.close()


def download(url: str, path: Path, progress: Progress | None) -> Steps[Path]:
    """Into `path`, which appears when it is whole. A download that was cut off starts anew."""
    part = path.with_name(f"{path.name}.part")
    sink = FileSink(part, progress)
    try:
        yield Fetch(url, sink)
        sink.close()
        part.replace(path)
    finally:
        sink.close()
        part.unlink(missing_ok=True)
    return path
