"""Contents of files that are over are removed, whatever happens in between."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from store.file_contents import FileContents
from store.file_output import append_part, open_output
from tasks.ids import uuid7
from tests.support.poison import refuse
from tests.support.roles import Connections
from tests.support.rows import Rows
from workers.maintenance import file_sweeper
from workers.maintenance.file_sweeper import FileSweeper


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MILLRACE_FILES_URL", str(tmp_path / "files"))
    return tmp_path / "files"


@pytest.fixture
def contents(folder: Path) -> FileContents:
    return FileContents(str(folder))


def _file(roles: Connections, contents: FileContents, tenant: UUID) -> UUID:
    file_id = open_output(roles.worker, tenant, filename="out.jsonl", ttl_s=3_600)
    writer = contents.new_part(tenant, file_id)
    writer.write(b"x")
    append_part(roles.worker, tenant, file_id, writer.finish())
    return file_id


def _upload(roles: Connections, contents: FileContents, tenant: UUID, *, age_s: int) -> UUID:
    """One whose process was killed in the middle."""
    upload_id = uuid7()
    roles.owner.execute(
        "INSERT INTO file_uploads (id, tenant_id, reserved_bytes, started_at)"
        " VALUES (%s, %s, 9, now() - make_interval(secs => %s))",
        (upload_id, tenant, age_s),
    )
    writer = contents.new_part(tenant, upload_id)
    writer.write(b"half")
    writer.finish()
    return upload_id


def _stored(folder: Path) -> set[str]:
    """The files that have contents."""
    return {path.parent.name for path in folder.rglob("*") if path.is_file()}


def test_deleted_and_expired_files_lose_their_contents_and_keep_their_rows(
    roles: Connections, rows: Rows, contents: FileContents, folder: Path
) -> None:
    tenant = rows.tenant()
    kept, deleted, expired = (_file(roles, contents, tenant) for _ in range(3))
    roles.owner.execute("UPDATE files SET deleted_at = now() WHERE id = %s", (deleted,))
    roles.owner.execute(
        "UPDATE files SET expires_at = now() - interval '1 s' WHERE id = %s", (expired,)
    )

    has_more = FileSweeper().step(roles.worker)

    assert not has_more
    assert _stored(folder) == {kept.hex}
    found = roles.owner.execute(
        "SELECT id FROM files WHERE deleted_at IS NOT NULL AND purged_at IS NOT NULL"
    ).fetchall()
    assert {row["id"] for row in found} == {deleted, expired}
    assert rows.one("SELECT file_id FROM file_parts")["file_id"] == kept


def test_what_a_killed_process_left_of_uploads_is_removed(
    roles: Connections, rows: Rows, contents: FileContents, folder: Path
) -> None:
    tenant = rows.tenant()
    _upload(roles, contents, tenant, age_s=5_000)
    running = _upload(roles, contents, tenant, age_s=3_000)
    given_up = _upload(roles, contents, tenant, age_s=1)
    roles.owner.execute("UPDATE file_uploads SET abandoned_at = now() WHERE id = %s", (given_up,))

    FileSweeper().step(roles.worker)

    assert _stored(folder) == {running.hex}
    assert rows.one("SELECT id FROM file_uploads")["id"] == running


def test_a_file_that_can_not_be_removed_holds_up_no_other_and_comes_again(
    roles: Connections,
    rows: Rows,
    contents: FileContents,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tenant = rows.tenant()
    first, stuck, *others = (_file(roles, contents, tenant) for _ in range(5))
    roles.owner.execute("UPDATE files SET deleted_at = now()")
    monkeypatch.setattr(file_sweeper, "BATCH", 2)
    remove = FileContents.remove

    def remove_or_fail(self: FileContents, tenant_id: UUID, file_id: UUID) -> None:
        if file_id == stuck:
            raise RuntimeError("of a kind of the store's own")
        remove(self, tenant_id, file_id)

    sweeper = FileSweeper()
    with monkeypatch.context() as patch:
        patch.setattr(FileContents, "remove", remove_or_fail)
        rounds = [sweeper.step(roles.worker) for _ in range(3)]
        left = _stored(folder)
    sweeper.step(roles.worker)

    assert len({first, *others}) == 4
    assert rounds == [True, True, False]
    assert left == {stuck.hex}
    assert _stored(folder) == set()


def test_a_row_that_can_not_be_changed_holds_up_no_other_of_any_kind(
    roles: Connections, rows: Rows, contents: FileContents, folder: Path
) -> None:
    """An expired file, a lost upload, and a deleted file whose removal can't be noted."""
    tenant = rows.tenant()
    expired, deleted = ([_file(roles, contents, tenant) for _ in range(3)] for _ in range(2))
    uploads = [_upload(roles, contents, tenant, age_s=5_000) for _ in range(3)]
    roles.owner.execute(
        "UPDATE files SET expires_at = now() - interval '1 s' WHERE id = ANY(%s)", (expired,)
    )
    roles.owner.execute("UPDATE files SET deleted_at = now() WHERE id = ANY(%s)", (deleted,))
    for number, (table, id_) in enumerate(
        (("files", expired[0]), ("files", deleted[0]), ("file_uploads", uploads[0]))
    ):
        refuse(roles.owner, table, "id", id_, name=f"refuse_{number}")
    clock = iter([0.0] * 40)
    sweeper = FileSweeper(lambda: next(clock))

    sweeper.step(roles.worker)

    purged = roles.owner.execute("SELECT id FROM files WHERE purged_at IS NOT NULL").fetchall()
    assert {row["id"] for row in purged} == {*expired[1:], *deleted[1:]}
    assert rows.one("SELECT id FROM file_uploads")["id"] == uploads[0]
    assert _stored(folder) == {expired[0].hex, uploads[0].hex}


def test_the_row_of_a_file_goes_an_hour_after_its_contents(
    roles: Connections, rows: Rows, contents: FileContents, folder: Path
) -> None:
    old, young, kept = (_file(roles, contents, rows.tenant()) for _ in range(3))
    roles.owner.execute("UPDATE files SET deleted_at = now() WHERE id <> %s", (kept,))
    FileSweeper().step(roles.worker)
    for id_, minutes in ((old, 61), (young, 59)):
        roles.owner.execute(
            "UPDATE files SET purged_at = now() - make_interval(mins => %s) WHERE id = %s",
            (minutes, id_),
        )

    FileSweeper().step(roles.worker)

    left = roles.owner.execute("SELECT id FROM files").fetchall()
    assert {row["id"] for row in left} == {young, kept}


def test_sweeping_twice_is_harmless(
    roles: Connections, rows: Rows, contents: FileContents, folder: Path
) -> None:
    tenant = rows.tenant()
    _file(roles, contents, tenant)
    roles.owner.execute("UPDATE files SET deleted_at = now()")

    FileSweeper().step(roles.worker)
    first = rows.one("SELECT purged_at FROM files")
    roles.owner.execute("UPDATE files SET deleted_at = now()")
    FileSweeper().step(roles.worker)

    assert rows.one("SELECT purged_at FROM files") == first
    assert _stored(folder) == set()
