"""What a step that fails, or is killed, leaves on the disk: nothing that nobody finds."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from store.file_contents import FileContents, PartWriter
from store.file_retention import UPLOAD_TTL_S
from tests.integration.batches.conftest import Batches
from tests.integration.batches.test_writing import _over, _steps, _stored
from workers.batches.writing import LineWriterFenced
from workers.maintenance.file_sweeper import FileSweeper

FULL = OSError(errno.ENOSPC, "No space left on device")


def _fill_up(monkeypatch: pytest.MonkeyPatch, *, removes: bool = True) -> None:
    """All that is written gets its place, but for the last bytes. Not removes: killed there."""

    def finish(writer: PartWriter) -> Any:
        writer._file.flush()
        raise FULL

    monkeypatch.setattr(PartWriter, "finish", finish)
    if not removes:
        monkeypatch.setattr(PartWriter, "abort", lambda _: None)


def _uploads(batches: Batches) -> list[UUID]:
    query = "SELECT coalesce(array_agg(id), '{}') AS ids FROM file_uploads"
    return list(batches.rows.one(query)["ids"])


def test_a_part_for_which_there_is_no_room_is_removed(
    batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _over(batches, 2)
    row, stored = batches.lease(first), _stored(tmp_path)
    with monkeypatch.context() as patch:
        _fill_up(patch)
        with pytest.raises(OSError, match="No space"):
            _steps(batches, first, row)
        assert _stored(tmp_path) == stored
        live = "SELECT count(*) AS num FROM file_uploads WHERE abandoned_at IS NULL"
        assert batches.rows.one(live) == {"num": 0}  # it counts as no file of the tenant's

    assert _steps(batches, first, row, part_bytes=1) == [1, 1]

    assert len(_stored(tmp_path)) == len(stored) + 2
    assert [line["custom_id"] for line in batches.lines(first)] == ["line-1", "line-2"]


def test_a_later_part_for_which_there_is_no_room_is_removed(
    batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = _over(batches, 2)
    row = batches.lease(batch)
    finish, nums = PartWriter.finish, iter([1, 2])

    def second_fails(writer: PartWriter) -> Any:
        if next(nums) == 2:
            writer._file.flush()
            raise FULL
        return finish(writer)

    with monkeypatch.context() as patch:
        patch.setattr(PartWriter, "finish", second_fails)
        with pytest.raises(OSError, match="No space"):
            _steps(batches, batch, row, part_bytes=1)

    parts = batches.rows.one("SELECT array_agg(object_key) AS keys FROM file_parts")["keys"]
    assert {str(path.relative_to(tmp_path / "files")) for path in _stored(tmp_path)} == set(parts)


def test_the_sweeper_finds_what_a_killed_driver_left(
    batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = _over(batches, 1)
    row, stored = batches.lease(batch), _stored(tmp_path)
    with monkeypatch.context() as patch:
        _fill_up(patch, removes=False)
        with pytest.raises(OSError, match="No space"):
            _steps(batches, batch, row)
    assert len(_stored(tmp_path)) == len(stored) + 1
    assert batches.row(batch)["output_file_id"] is None

    batches.rows.connection.execute(
        "UPDATE file_uploads SET started_at = now() - make_interval(secs => %s)", (UPLOAD_TTL_S,)
    )
    monkeypatch.setenv("MILLRACE_FILES_URL", str(tmp_path / "files"))
    FileSweeper().step(batches.rows.connection)

    assert _stored(tmp_path) == stored
    assert _uploads(batches) == []


def test_a_file_is_no_upload_once_its_first_part_stands(batches: Batches) -> None:
    batch = _over(batches, 1)

    assert _steps(batches, batch, batches.lease(batch)) == [1]

    assert _uploads(batches) == []


def test_a_driver_so_slow_that_it_was_taken_for_dead_writes_nothing(
    batches: Batches, tmp_path: Path
) -> None:
    batch = _over(batches, 1)
    row, stored = batches.lease(batch), _stored(tmp_path)
    batches.rows.connection.execute(
        "CREATE FUNCTION take_for_dead() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.abandoned_at := now(); RETURN NEW; END $$"
    )
    batches.rows.connection.execute(
        "CREATE TRIGGER take_for_dead BEFORE INSERT ON file_uploads"
        " FOR EACH ROW EXECUTE FUNCTION take_for_dead()"
    )

    with pytest.raises(LineWriterFenced):
        _steps(batches, batch, row)

    assert _stored(tmp_path) == stored
    assert batches.row(batch)["output_file_id"] is None


def test_a_part_whose_last_bytes_have_no_room_can_be_given_up(tmp_path: Path) -> None:
    writer = FileContents(str(tmp_path)).new_part(UUID(int=1), UUID(int=2))
    writer.write(b"x")
    file = writer._file

    def close() -> None:
        file.close()
        raise FULL

    writer._file = SimpleNamespace(close=close)

    writer.abort()

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
