"""What a batch run keeps on disk: which batch it waits for, and the results it has."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class RunState:
    """`<input>.millrace.json`. Written before each step that must not be done twice."""

    fingerprint: str  # of the input and what is asked for it; another one is another run
    file_id: str  # uploaded for this run alone, so that a batch over it is this run's
    batch_id: str | None = None
    uploaded_at: int = 0  # Unix time, by the server's clock

    @classmethod
    def read(cls, path: Path) -> RunState | None:
        """None if there is none, or nothing that can be read."""
        try:
            return cls(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        part = path.with_name(f"{path.name}.part")
        part.write_text(json.dumps(asdict(self)) + "\n")
        part.replace(path)


def fingerprint(path: Path, *parameters: str) -> str:
    """Of a file's bytes and the parameters."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update("\0".join(parameters).encode())
    return digest.hexdigest()


class ResultsFile:
    """Lines of results, each `custom_id` once, even if the server's file is read again.

    That file only grows, so it is read on from where it ended at the last look. A new process reads
    it once from its start: what is here may have been changed by anybody.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b")
        self._seen: set[str] = set()
        self._rest = b""
        self._position = 0
        self._take_up()

    @property
    def num_lines(self) -> int:
        return len(self._seen)

    @property
    def position(self) -> int:
        """In the server's file."""
        return self._position

    def start(self, position: int, total: int | None) -> None:
        if position != self._position:
            self._rest, self._position = b"", position

    def write(self, data: bytes) -> None:
        self._position += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._add(line)
        self._file.flush()

    def finish(self) -> None:
        """The server's file grows no more, and was read to its end, which may lack a newline."""
        rest, self._rest = self._rest, b""
        if _custom_id(rest) is not None:
            self._add(rest)
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add(self, line: bytes) -> None:
        custom_id = _custom_id(line)
        if custom_id is not None and custom_id not in self._seen:
            self._seen.add(custom_id)
            self._file.write(line + b"\n")

    def _take_up(self) -> None:
        """What an earlier run wrote; a line it was interrupted in is cut off."""
        self._file.seek(0)
        end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            custom_id = _custom_id(line)
            if custom_id is not None:
                self._seen.add(custom_id)
        _truncate(self._file, end)


def _truncate(file: BinaryIO, length: int) -> None:
    file.truncate(length)
    file.seek(0, os.SEEK_END)


def _custom_id(line: bytes) -> str | None:
    try:
        parsed = json.loads(line)
    except ValueError:
        return None
    custom_id = parsed.get("custom_id") if isinstance(parsed, dict) else None
    return custom_id if isinstance(custom_id, str) else None
