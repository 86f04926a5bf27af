"""What becomes of each line of a batch's file, read slice by slice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from store import batch_turns
from store.file_contents import FileContents, PartsReader
from store.file_output import append_part
from tests.integration.batches.conftest import URL, Batches
from workers.batches.reading import (
    MAX_LINE_BYTES,
    MAX_LINES,
    MAX_LISTED_ERRORS,
    PREFIX_BYTES,
    FileReader,
)


def _line(**fields: Any) -> bytes:
    line = {"custom_id": "a", "url": URL, "body": {}} | fields
    return json.dumps({name: value for name, value in line.items() if value is not None}).encode()


def _batch(batches: Batches, lines: Sequence[bytes], *, end: bytes = b"\n") -> UUID:
    return batches.add(batches.tenant(), [line + end for line in lines])


def _step(batches: Batches, batch: UUID, **limits: int) -> dict[str, Any]:
    """One step of its reader; the row behind it."""
    leased = batches.lease(batch)
    FileReader(batches.pool, batches.contents, leased, **limits).step()
    with batches.pool.connection() as connection:
        batch_turns.release(connection, leased, batch_turns.Rest(pause_s=0))
    return batches.row(batch)


def _read(batches: Batches, batch: UUID, **limits: int) -> dict[str, Any]:
    """All of it."""
    for _ in range(200):
        row = _step(batches, batch, **limits)
        if row["status"] != "validating":
            return row
    raise AssertionError("still not read")


def _mistakes(row: dict[str, Any]) -> list[tuple[str, int | None, str | None]]:
    return [(error["code"], error["line"], error["param"]) for error in row["errors"]]


def _lines(batches: Batches) -> list[dict[str, Any]]:
    return batches.rows.connection.execute("SELECT * FROM batch_lines ORDER BY number").fetchall()


def test_each_line_that_fails_its_batch_is_named(batches: Batches) -> None:
    bad: list[tuple[bytes, str, str | None]] = [
        (b"no json", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (_line(custom_id=None), "invalid_custom_id", "custom_id"),
        (_line(custom_id=7), "invalid_custom_id", "custom_id"),
        (_line(custom_id=["a"]), "invalid_custom_id", "custom_id"),
        (_line(custom_id=""), "invalid_custom_id", "custom_id"),
        (_line(custom_id="a" * 65), "invalid_custom_id", "custom_id"),
        (_line(method="GET"), "invalid_method", "method"),
        (_line(url="/v1/completions"), "mismatched_url", "url"),
        (_line(url=None), "mismatched_url", "url"),
        (_line(body=[]), "invalid_body", "body"),
        (_line(body=None), "invalid_body", "body"),
    ]
    batch = _batch(batches, [_line(custom_id="good"), *(line for line, _, _ in bad)])

    row = _read(batches, batch)

    named = [(code, number, param) for number, (_, code, param) in enumerate(bad, start=2)]
    assert (row["status"], _mistakes(row)) == ("failed", named)
    assert all(error["message"] for error in row["errors"])
    assert (row["num_total"], _lines(batches)) == (0, [])


def test_what_lines_become(batches: Batches) -> None:
    bodies: list[dict[str, Any]] = [
        {"model": "m", "messages": [{"role": "user", "content": "a"}], "seed": 1},
        {"seed": 2, "model": "m", "messages": [{"role": "user", "content": "a"}]},
        {"model": "m", "prompt": "x" * 900},
        {"model": "m", "prompt": "x" * 901},
    ]
    ids = ["a", "b" * 64, "c", "d"]
    made = [_line(custom_id=i, body=b) for i, b in zip(ids, bodies, strict=True)]
    batch = _batch(batches, [made[0], b" ", *made[1:3], b"", made[3][:-1] + b', "method": "POST"}'])

    row = _read(batches, batch)

    lines = _lines(batches)
    assert (row["status"], row["errors"], row["num_total"]) == ("in_progress", [], 4)
    assert row["in_progress_at"] is not None
    assert (row["read_lines"], row["read_bytes"]) == (6, row["input_bytes"])
    assert [(line["number"], line["custom_id"]) for line in lines] == [
        *[(1, "a"), (3, "b" * 64), (4, "c"), (6, "d")]
    ]
    assert [json.loads(line["body"]) for line in lines] == bodies
    first, again, long, longer = (bytes(line["prefix"]) for line in lines)
    assert first == again  # alike in all that a prompt is made of
    assert long != longer
    assert long[:PREFIX_BYTES] == longer[:PREFIX_BYTES]
    assert len(long) == PREFIX_BYTES + 8


def test_the_last_line_needs_no_end_and_lines_may_end_as_on_windows(batches: Batches) -> None:
    batch = batches.add(batches.tenant(), [_line(custom_id="a") + b"\r\n", _line(custom_id="b")])

    row = _read(batches, batch)

    assert (row["status"], row["num_total"], row["read_lines"]) == ("in_progress", 2, 2)


def test_files_without_lines_and_files_that_are_gone_fail_their_batches(batches: Batches) -> None:
    empty = [batches.add(batches.tenant(), [content]) for content in (b"\n", b" \n\n")]
    gone = _batch(batches, [_line()])
    batches.rows.connection.execute(
        "UPDATE files SET deleted_at = now(), purged_at = now() WHERE id = %s",
        (batches.row(gone)["input_file_id"],),
    )

    rows = [_read(batches, batch) for batch in (*empty, gone)]

    assert {row["status"] for row in rows} == {"failed"}
    found = [("empty_file", None, None)] * 2 + [("file_not_found", None, None)]
    assert [mistake for row in rows for mistake in _mistakes(row)] == found


def test_slices_end_after_so_many_lines(batches: Batches) -> None:
    lines = [_line(custom_id=str(number)) for number in range(5)]
    batch = _batch(batches, lines)

    rows = [_step(batches, batch, slice_lines=2) for _ in range(3)]

    read = [(row["status"], row["read_lines"], row["num_total"]) for row in rows]
    assert read == [("validating", 2, 2), ("validating", 4, 4), ("in_progress", 5, 5)]
    size = len(lines[0]) + 1
    assert [row["read_bytes"] for row in rows] == [2 * size, 4 * size, 5 * size]


def test_a_reader_that_died_behind_the_last_slice_begins_the_batch(batches: Batches) -> None:
    batch = _batch(batches, [_line()])
    _step(batches, batch)
    batches.rows.connection.execute("UPDATE batches SET status = 'validating'")

    row = _step(batches, batch)

    assert (row["status"], row["num_total"]) == ("in_progress", 1)


def test_a_batch_that_is_read_anew_forgets_its_lines_first(batches: Batches) -> None:
    batch = _batch(batches, [_line()])
    _step(batches, batch)
    batches.rows.connection.execute(
        "UPDATE batches SET status = 'validating', read_bytes = 0, read_lines = 0, num_total = 0"
    )

    forgotten = _step(batches, batch)
    assert (forgotten["status"], _lines(batches)) == ("validating", [])
    again = _step(batches, batch)

    assert (again["status"], again["num_total"]) == ("in_progress", 1)


def test_a_file_in_parts_is_read_across_them(batches: Batches) -> None:
    data = b"".join(_line(custom_id=str(number)) + b"\n" for number in range(6))
    batch = _batch(batches, [data[:61]], end=b"")  # less than a line
    row = batches.row(batch)
    for begin in range(61, len(data), 61):
        writer = batches.contents.new_part(row["tenant_id"], row["input_file_id"])
        writer.write(data[begin : begin + 61])
        part = writer.finish()
        append_part(batches.rows.connection, row["tenant_id"], row["input_file_id"], part)

    row = _read(batches, batch, slice_bytes=100)

    assert (row["status"], row["num_total"], row["errors"]) == ("in_progress", 6, [])
    assert [line["custom_id"] for line in _lines(batches)] == list("012345")


def test_not_all_mistakes_are_listed_and_the_rest_is_not_read(batches: Batches) -> None:
    batch = _batch(batches, [b"no"] * (MAX_LISTED_ERRORS + 5))

    row = _read(batches, batch)

    assert row["status"] == "failed"
    assert [error["line"] for error in row["errors"]] == list(range(1, MAX_LISTED_ERRORS + 1))
    assert row["read_lines"] == MAX_LISTED_ERRORS
    assert row["read_bytes"] == row["input_bytes"]


def test_mistakes_of_all_slices_are_listed(batches: Batches) -> None:
    batch = _batch(batches, [b"no", _line(), b"no", b"no"])

    row = _read(batches, batch, slice_lines=1)

    assert [error["line"] for error in row["errors"]] == [1, 3, 4]


def test_how_many_lines_a_file_may_have(batches: Batches) -> None:
    full = batches.add(batches.tenant(), [b"\n" * (MAX_LINES - 1), _line()])
    fuller = batches.add(batches.tenant(), [b"\n" * MAX_LINES, _line(), b"\nno"])

    assert _read(batches, full)["status"] == "in_progress"
    row = _read(batches, fuller)
    assert row["status"] == "failed"
    assert _mistakes(row) == [("too_many_lines", MAX_LINES + 1, None)]


def test_how_long_a_line_may_be(batches: Batches) -> None:
    num_letters = MAX_LINE_BYTES - len(_line(body={"prompt": ""}, custom_id="b"))
    long, longer = (
        _line(body={"prompt": "x" * (num_letters + more)}, custom_id="b") for more in (0, 1)
    )
    good = _batch(batches, [_line(), long])
    bad = _batch(batches, [_line(), longer, b"no"])

    assert _read(batches, good)["status"] == "in_progress"
    row = _read(batches, bad)
    assert row["status"] == "failed"
    assert _mistakes(row) == [("line_too_long", 2, None)]


class _Watched(FileContents):
    """Remembers what was opened."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.opened: list[PartsReader] = []

    def open(
        self, object_keys: Sequence[str], *, skip: int = 0, limit: int | None = None
    ) -> PartsReader:
        self.opened.append(super().open(object_keys, skip=skip, limit=limit))
        return self.opened[-1]


def test_contents_are_closed_after_a_slice(batches: Batches, tmp_path: Path) -> None:
    batch = _batch(batches, [_line(custom_id=id_) for id_ in "abc"])
    contents = _Watched(str(tmp_path / "files"))

    FileReader(batches.pool, contents, batches.lease(batch), slice_bytes=100).step()

    [reader] = contents.opened
    assert reader.read() == b""  # though there is more


def test_equal_slices_are_counted_together(batches: Batches) -> None:
    batch = _batch(batches, [_line(custom_id=id_) for id_ in "abcd"])

    row = _read(batches, batch, slice_lines=2)

    assert (row["status"], row["num_total"], row["errors"]) == ("in_progress", 4, [])


def test_a_file_of_nothing_but_mistakes_is_not_said_to_be_empty(batches: Batches) -> None:
    row = _read(batches, _batch(batches, [b"no"]))

    assert (row["status"], _mistakes(row)) == ("failed", [("invalid_json_line", 1, None)])


def test_lines_that_begin_alike_for_a_kilobyte_run_beside_each_other(batches: Batches) -> None:
    bodies = [{"prompt": "x" * 2_000 + end} for end in "ab"]
    lines = [_line(custom_id=str(n), body=body) for n, body in enumerate(bodies)]

    _read(batches, _batch(batches, lines))

    first, second = (bytes(line["prefix"]) for line in _lines(batches))
    assert first == second


def test_not_all_duplicates_are_listed(batches: Batches) -> None:
    row = _read(batches, _batch(batches, [_line()] * (MAX_LISTED_ERRORS + 5)))

    assert row["status"] == "failed"
    assert [error["line"] for error in row["errors"]] == list(range(2, MAX_LISTED_ERRORS + 2))
