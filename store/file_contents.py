"""The contents of files: objects in a folder, or behind any URL that fsspec knows (such as s3://).

Everything here blocks. An object is written once under a name of its own and counts only when a row
of Postgres names it: that commit makes a file whole, so nothing is moved, overwritten or appended
to, and what a crash leaves half-written belongs to no file. Such leftovers lie below the file's
prefix and go with it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

CHUNK_BYTES = 256 << 10  # read and written at once
_BLOCK_BYTES = 5 << 20  # what a remote store is sent at once; the least S3 takes


@dataclass(frozen=True, slots=True)
class StoredPart:
    """An object that is safely stored, and not yet part of a file."""

    object_key: str
    num_bytes: int
    sha256: bytes


class FileContents:
    """One content store. Safe for threads. Building it opens nothing."""

    def __init__(self, url: str) -> None:
        self._fs: Any
        self._fs, root = url_to_fs(url)
        self._root = root.rstrip("/")

    def new_part(self, tenant_id: UUID, file_id: UUID) -> PartWriter:
        """A new object of a file. Keys are made of our ids, never of what a user sent."""
        key = f"{tenant_id.hex}/{file_id.hex}/{secrets.token_hex(8)}"
        return PartWriter(self._fs, self._path(key), key)

    def open(
        self, object_keys: Sequence[str], *, skip: int = 0, limit: int | None = None
    ) -> PartsReader:
        """Their contents one after the other. Opens each when it is reached.

        skip: so many bytes of the first object are left out. limit: of bytes that are read in all.
        """
        paths = map(self._path, object_keys)
        return PartsReader(self._fs, paths, skip=skip, limit=limit)

    def remove(self, tenant_id: UUID, file_id: UUID) -> None:
        """All objects of a file, named by a row or not. Idempotent."""
        self._remove(f"{tenant_id.hex}/{file_id.hex}")

    def remove_part(self, part: StoredPart) -> None:
        """An object that became no part of a file. Idempotent."""
        self._remove(part.object_key)

    def _remove(self, key: str) -> None:
        self._fs.invalidate_cache()  # of listings: another process may have written
        with suppress(FileNotFoundError):
            self._fs.rm(self._path(key), recursive=True)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"


class PartWriter:
    """Writes one object. One caller; the lock is for one that gave up while a write still ran."""

    def __init__(self, fs: Any, path: str, key: str) -> None:
        self._fs = fs
        self._path = path
        self._key = key
        self._is_local = isinstance(fs, LocalFileSystem)
        self._digest = hashlib.sha256()
        self._num_bytes = 0
        self._lock = threading.Lock()
        self._file: Any = None

    def write(self, data: bytes | bytearray) -> None:
        """Add bytes."""
        with self._lock:
            if self._file is None:
                self._open()
            self._file.write(data)
            self._digest.update(data)
            self._num_bytes += len(data)

    def finish(self) -> StoredPart:
        """The object outlives a crash of the machine when this returns. Something was written."""
        with self._lock:
            if self._is_local:
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
            if self._is_local:
                _sync_folders(self._path)
        return StoredPart(self._key, self._num_bytes, self._digest.digest())

    def abort(self) -> None:
        """Leave nothing. Safe at any time, and twice."""
        with self._lock:
            if self._file is not None:
                with suppress(Exception):  # there may be no room for its last bytes
                    self._file.close()
                with suppress(FileNotFoundError):
                    self._fs.rm(self._path)

    def _open(self) -> None:
        if self._is_local:  # elsewhere folders are but parts of names
            self._fs.makedirs(os.path.dirname(self._path), exist_ok=True)
        self._file = self._fs.open(self._path, "wb", block_size=_BLOCK_BYTES)


class PartsReader:
    """Reads objects one after the other. May be closed while a read runs in another thread."""

    def __init__(
        self, fs: Any, paths: Iterable[str], *, skip: int = 0, limit: int | None = None
    ) -> None:
        self._fs = fs
        self._paths = iter(paths)
        self._skip = skip
        self._left = sys.maxsize if limit is None else limit
        self._lock = threading.Lock()
        self._file: Any = None
        self._is_closed = False

    def read(self, max_bytes: int = CHUNK_BYTES) -> bytes:
        """The next bytes, empty at the end. Raises OSError if an object is missing."""
        with self._lock:
            while self._file is not None or self._open_next():
                if data := self._file.read(min(max_bytes, self._left)):
                    self._left -= len(data)
                    return bytes(data)
                self._close_file()
            return b""

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            self._is_closed = True
            self._close_file()

    def __iter__(self) -> Iterator[bytes]:
        """All chunks; the reader is closed after the last one."""
        try:
            while data := self.read():
                yield data
        finally:
            self.close()

    def _open_next(self) -> bool:
        is_over = self._is_closed or not self._left
        path = None if is_over else next(self._paths, None)
        if path is not None:
            self._file = self._fs.open(path, "rb", block_size=_BLOCK_BYTES)
            self._file.seek(self._skip)
            self._skip = 0
        return path is not None

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _sync_folders(path: str) -> None:
    """The names of a new object and of the two folders that may be new with it."""
    folder = path
    for _ in range(3):
        folder = os.path.dirname(folder)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
