"""The same promises in a folder and in a store without folders."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from uuid import UUID, uuid4

import fsspec
import pytest

from store.file_contents import FileContents, StoredPart
from tasks.ids import uuid7

TENANT = uuid4()


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "new" / "files") if request.param == "folder" else f"memory://{uuid4()}"


@pytest.fixture
def contents(url: str) -> FileContents:
    return FileContents(url)


def _store(contents: FileContents, file_id: UUID, *pieces: bytes | bytearray) -> StoredPart:
    writer = contents.new_part(TENANT, file_id)
    for piece in pieces:
        writer.write(piece)
    return writer.finish()


def _objects(url: str) -> list[str]:
    fs, root = fsspec.url_to_fs(url)
    return list(fs.find(root)) if fs.exists(root) else []


def test_a_part_is_what_was_written(contents: FileContents) -> None:
    part = _store(contents, uuid7(), b"one ", bytearray(b"two"))

    assert (part.num_bytes, part.sha256) == (7, hashlib.sha256(b"one two").digest())
    assert list(contents.open([part.object_key])) == [b"one two"]


def test_parts_are_read_one_after_the_other(contents: FileContents) -> None:
    file_id = uuid7()
    keys = [_store(contents, file_id, text).object_key for text in (b"abcd", b"e", b"fghij")]

    reader = contents.open(keys)
    chunks = []
    while chunk := reader.read(3):
        chunks.append(chunk)

    assert chunks == [b"abc", b"d", b"e", b"fgh", b"ij"]


@pytest.mark.parametrize("limit", [0, 1, 4, 6, 8, None])
def test_a_reader_begins_and_ends_where_it_is_told(
    contents: FileContents, limit: int | None
) -> None:
    file_id = uuid7()
    keys = [_store(contents, file_id, text).object_key for text in (b"abcd", b"e", b"fghij")]

    read = b"".join(contents.open(keys, skip=2, limit=limit))

    assert read == b"cdefghij"[:limit]


def test_a_closed_reader_gives_nothing_more(contents: FileContents) -> None:
    key = _store(contents, uuid7(), b"abc").object_key
    reader = contents.open([key, key])

    first = reader.read(1)
    reader.close()
    reader.close()

    assert (first, reader.read(1)) == (b"a", b"")


def test_removing_takes_everything_of_one_file_and_nothing_else(
    contents: FileContents, url: str
) -> None:
    gone, kept = uuid7(), uuid7()
    _store(contents, gone, b"named")
    unfinished = contents.new_part(TENANT, gone)
    unfinished.write(b"half")
    part = _store(contents, kept, b"kept")

    unfinished.abort()
    contents.remove(TENANT, gone)
    contents.remove(TENANT, gone)

    assert [path.endswith(part.object_key) for path in _objects(url)] == [True]


def test_an_aborted_part_leaves_nothing_and_no_bytes_mean_no_object(
    contents: FileContents, url: str
) -> None:
    begun, untouched = contents.new_part(TENANT, uuid7()), contents.new_part(TENANT, uuid7())
    begun.write(b"x")

    for writer in (begun, untouched):
        writer.abort()
        writer.abort()

    assert _objects(url) == []


def test_a_refused_part_can_be_removed_alone(contents: FileContents, url: str) -> None:
    file_id = uuid7()
    kept, refused = _store(contents, file_id, b"a"), _store(contents, file_id, b"b")

    contents.remove_part(refused)
    contents.remove_part(refused)

    assert list(contents.open([kept.object_key])) == [b"a"]
    assert len(_objects(url)) == 1


def test_a_missing_object_is_an_error_not_an_end(contents: FileContents) -> None:
    file_id = uuid7()
    part = _store(contents, file_id, b"x")
    contents.remove(TENANT, file_id)

    with pytest.raises(FileNotFoundError):
        contents.open([part.object_key]).read()


def test_objects_behind_the_limit_are_not_opened(contents: FileContents) -> None:
    key = _store(contents, uuid7(), b"abc").object_key

    assert list(contents.open([key, "missing"], limit=3)) == [b"abc"]


def test_a_reader_takes_little_at_once_and_is_closed_by_whom_stops(contents: FileContents) -> None:
    key = _store(contents, uuid7(), b"x" * (2 * 256 * 1024 + 1)).object_key
    reader = contents.open([key])
    chunks = iter(reader)

    first = next(chunks)
    del chunks

    assert len(first) == 256 * 1024
    assert reader.read() == b""
    assert [len(chunk) for chunk in contents.open([key])] == [256 * 1024] * 2 + [1]


def test_a_finished_part_and_its_names_are_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the whole of its contents, then the folders that are new with it."""
    synced: list[tuple[Path, int]] = []
    sync = os.fsync

    def noted(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((path, os.fstat(descriptor).st_size if path.is_file() else 0))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    file_id = uuid7()

    part = _store(FileContents(str(tmp_path)), file_id, b"some ", b"bytes")

    path = tmp_path / part.object_key
    assert synced == [(path, 10), *((folder, 0) for folder in list(path.parents)[:3])]
    assert list(path.parents)[2] == tmp_path


def test_a_store_without_folders_gets_none() -> None:
    url = f"memory://{uuid4()}"
    contents, file_id = FileContents(url), uuid7()
    _store(contents, file_id, b"x")
    fs, root = fsspec.url_to_fs(url)

    contents.remove(TENANT, file_id)

    assert not fs.exists(root)
