"""Work of several requests as a generator of its steps: what to do next, decided without I/O to the
server. The sync and the async client perform the steps and send back what came of each.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx

from millrace.calls import Call
from millrace.errors import RangeNotSatisfiableError
from millrace.uploads import Progress

T = TypeVar("T")

_CONTENT_RANGE = re.compile(r"bytes ([0-9]+)-[0-9]+/([0-9]+|\*)")


class Sink(Protocol):
    """Takes the bytes of a file on the server."""

    @property
    def position(self) -> int:
        """How many it has taken: the next ones wanted begin there."""

    def start(self, position: int, total: int | None) -> None:
        """They come from there on: where it is, or the first. `total` is the file's length now."""

    def write(self, data: bytes) -> None:
        """The next of them."""


@dataclass(frozen=True)
class Fetch:
    """Read the bytes of this path that the sink doesn't have. Performed again, it goes on where a
    connection broke, or where the file had its end the last time.
    """

    path: str
    sink: Sink

    def headers(self) -> dict[str, str]:
        """Nothing is compressed on the way: positions are those of the file."""
        range_ = {"Range": f"bytes={self.sink.position}-"} if self.sink.position else {}
        return {"Accept-Encoding": "identity", **range_}

    def start(self, response: httpx.Response) -> None:
        """The head of a good answer is there: the range, or all from a server that knows none.

        Raises httpx.TransportError for a range that was not asked for.
        """
        if response.status_code == httpx.codes.PARTIAL_CONTENT:
            self.sink.start(*self._range_of(response))
        else:
            length = response.headers.get("content-length", "")
            self.sink.start(0, int(length) if length.isdigit() else None)

    def _range_of(self, response: httpx.Response) -> tuple[int, int | None]:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if match is None or int(match[1]) != self.sink.position:
            message = "the server sent another range than was asked for"
            raise httpx.RemoteProtocolError(message, request=response.request)
        return int(match[1]), int(match[2]) if match[2] != "*" else None


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

    @property
    def position(self) -> int:
        return self._file.tell()

    def start(self, position: int, total: int | None) -> None:
        self._file.seek(position)
        self._file.truncate()
        self._total = total or 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        if self._progress:
            self._progress(self._file.tell(), self._total)

    def close(self) -> None:
        self._file.close()


def download(url: str, path: Path, progress: Progress | None) -> Steps[Path]:
    """Into `path`, which appears when it is whole. One that was cut off goes on where it was."""
    part = path.with_name(f"{path.name}.part")
    sink = FileSink(part, progress)
    try:
        with suppress(RangeNotSatisfiableError):  # it was cut off behind its last byte
            yield Fetch(url, sink)
        sink.close()
        part.replace(path)
    finally:
        sink.close()
        part.unlink(missing_ok=True)
    return path
