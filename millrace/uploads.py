"""Reading a file into a request, piece by piece, and saying how far that is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

Progress = Callable[[int, int], None]  # bytes so far, bytes in all


@dataclass(frozen=True)
class Upload:
    """A form with one file. It is read anew for each try."""

    path: Path
    filename: str
    fields: Mapping[str, str] = field(default_factory=dict)
    progress: Progress | None = None

    @contextmanager
    def opened(self) -> Iterator[dict[str, Any]]:
        """As httpx takes it; it streams what has a `read` and knows its length by `fileno`."""
        with self.path.open("rb") as file:
            reader = _Reader(file, self.progress) if self.progress else file
            yield {"files": {"file": (self.filename, reader)}, "data": dict(self.fields)}


class _Reader:
    """A file that reports what was read of it."""

    def __init__(self, file: BinaryIO, progress: Progress) -> None:
        self._file = file
        self._progress = progress
        self._total = os.fstat(file.fileno()).st_size

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._progress(self._file.tell(), self._total)
        return data

    def fileno(self) -> int:
        return self._file.fileno()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
