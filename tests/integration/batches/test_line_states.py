"""Each statement about lines acts on its batch, under its lease, on lines in their right state."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest

from store import batch_driving, batch_results, batch_turns
from store.batch_driving import FORGET_AT_ONCE, Left, ReadLines, WrittenLines
from store.batch_turns import BatchRow, Rest
from store.file_output import open_output
from store.files import BATCH_TTL_S
from store.pools import DictConnection
from tasks.ids import uuid7
from tests.integration.batches.test_batch_driving import _batch, _die, _line
from tests.support.roles import Connections
from tests.support.rows import Rows
from tests.support.waiting import wait_until

ERROR = {"error": {"code": "x"}}


@pytest.fixture
def worker(roles: Connections) -> DictConnection:
    return roles.worker


def _full(rows: Rows, tenant: UUID) -> tuple[UUID, list[UUID]]:
    """A batch: line 1 pending, 2 and 3 submitted (3 is over), 4 refused, 5 over. And its jobs."""
    batch = _batch(rows, tenant, num_lines=5)
    running, done, written = rows.job(tenant), rows.ended_job(tenant), rows.ended_job(tenant)
    for number, job in ((2, running), (3, done), (5, written)):
        batch_driving.note_submitted(rows.connection, batch, number, job)
        key = batch_driving.line_key(batch, number)
        rows.connection.execute(
            "UPDATE jobs SET batch_id = %s, idempotency_key = %s, input_tokens = 10,"
            " cached_tokens = 3, output_tokens = 4 WHERE id = %s",
            (batch, key, job),
        )
    batch_driving.note_refused(rows.connection, batch, 4, ERROR)
    rows.connection.execute(
        "UPDATE batch_lines SET state = 'over' WHERE batch_id = %s AND number = 5", (batch,)
    )
    return batch, [running, done, written]


def _lease(worker: DictConnection, batch: UUID) -> BatchRow:
    row = batch_turns.lease(worker, batch)
    assert row is not None
    return row


def _states(rows: Rows, batch: UUID) -> dict[int, str]:
    found = rows.connection.execute(
        "SELECT number, state FROM batch_lines WHERE batch_id = %s", (batch,)
    )
    return {row["number"]: row["state"] for row in found.fetchall()}


STATES = {1: "pending", 2: "submitted", 3: "submitted", 4: "refused", 5: "over"}


def _rows_of(rows: Rows, batch: UUID) -> list[Any]:
    """All that is known of a batch."""
    lines = rows.connection.execute(
        "SELECT * FROM batch_lines WHERE batch_id = %s ORDER BY number", (batch,)
    )
    return [rows.one("SELECT * FROM batches WHERE id = %s", batch), *lines.fetchall()]


def _written(*numbers: int, output: UUID | None = None, error: UUID | None = None) -> WrittenLines:
    return WrittenLines(
        numbers=numbers,
        num_completed=1,
        num_failed=2,
        input_tokens=10,
        cached_tokens=3,
        output_tokens=4,
        output_file_id=output,
        error_file_id=error,
    )


Act = Callable[[DictConnection, BatchRow], Any]

# They change what stands in the batch's own row, or in the row's name.
FENCED: dict[str, Act] = {
    "advance": lambda c, b: batch_driving.advance(
        c, b, ReadLines([], 7, 8), num_added=2, mistakes=[{"code": "x"}]
    ),
    "note_over": lambda c, b: batch_driving.note_over(c, b, _written(3, 4)),
    "release": lambda c, b: batch_turns.release(c, b, Rest(pause_s=60, num_pauses=3)),
    "fail": lambda c, b: batch_driving.fail(c, b, [{"code": "x"}]),
    "end": lambda c, b: batch_driving.end(c, b, "completed"),
}
OTHERS: dict[str, Act] = {
    "add_lines": lambda c, b: batch_driving.add_lines(c, b["id"], [_line(9)]),
    "note_submitted": lambda c, b: batch_driving.note_submitted(c, b["id"], 1, uuid7()),
    "note_refused": lambda c, b: batch_driving.note_refused(c, b["id"], 1, ERROR),
    "postpone": lambda c, b: batch_driving.postpone_line(c, b["id"], 1, pause_s=9),
    "postpone_result": lambda c, b: batch_driving.postpone_result(c, b["id"], 4, pause_s=9),
    "refuse_pending": lambda c, b: batch_driving.refuse_pending(c, b["id"], ERROR),
    "forget": lambda c, b: batch_driving.forget_lines(c, b["id"]),
    "take_over": batch_driving.take_over,
}


@pytest.mark.parametrize("name", [*FENCED, *OTHERS])
def test_it_changes_its_batch_and_no_other(worker: DictConnection, rows: Rows, name: str) -> None:
    tenant = rows.tenant()
    (mine, _), (other, _) = _full(rows, tenant), _full(rows, tenant)
    leased = _lease(worker, mine)
    _lease(worker, other)
    before, before_other = _rows_of(rows, mine), _rows_of(rows, other)

    (FENCED | OTHERS)[name](worker, leased)

    assert _rows_of(rows, mine) != before
    assert _rows_of(rows, other) == before_other


def test_a_driver_that_was_overtaken_changes_nothing(worker: DictConnection, rows: Rows) -> None:
    batch, _ = _full(rows, rows.tenant())
    stale = _lease(worker, batch)
    _die(rows)
    _lease(worker, batch)
    before = _rows_of(rows, batch)

    for name, act in FENCED.items():
        if name == "note_over":  # its caller rolls back
            with worker.transaction(force_rollback=True):
                assert act(worker, stale) is False
        else:
            act(worker, stale)
        assert _rows_of(rows, batch) == before, name
    batch_driving.take_over(worker, stale)
    batch_driving.begin(worker, stale)

    assert _rows_of(rows, batch) == before
    assert not batch_driving.is_owned(worker, stale)


def test_a_batch_that_a_transaction_owns_is_leased_to_nobody(
    worker: DictConnection, roles: Connections, rows: Rows
) -> None:
    """Though its lease is over."""
    batch = _batch(rows, rows.tenant())
    leased = _lease(worker, batch)
    _die(rows)

    with worker.transaction():
        assert batch_driving.is_owned(worker, leased)
        assert batch_turns.lease(roles.owner, batch) is None

    assert batch_turns.lease(roles.owner, batch) is not None


def test_a_line_that_is_submitted_meanwhile_is_not_refused(
    worker: DictConnection, roles: Connections, rows: Rows
) -> None:
    """By a statement that waits for the one that submits it."""
    batch = _batch(rows, rows.tenant(), num_lines=2)
    with ThreadPoolExecutor(1) as thread, roles.owner.transaction():
        batch_driving.note_submitted(roles.owner, batch, 1, uuid7())
        refused = thread.submit(batch_driving.refuse_pending, worker, batch, ERROR)
        wait_until(lambda: _is_waiting(roles.api, worker), what="the lock")

    assert refused.result() == 1
    assert _states(rows, batch) == {1: "submitted", 2: "refused"}


def _is_waiting(connection: DictConnection, other: DictConnection) -> bool:
    row = connection.execute(
        "SELECT cardinality(pg_blocking_pids(%s)) > 0 AS is_so", (other.info.backend_pid,)
    ).fetchone()
    return row is not None and row["is_so"]


def test_lines_change_their_state_from_the_right_one_alone(
    worker: DictConnection, rows: Rows
) -> None:
    batch, _ = _full(rows, rows.tenant())
    before = _rows_of(rows, batch)

    for number in (2, 3, 4, 5):
        batch_driving.note_submitted(worker, batch, number, uuid7())
        batch_driving.note_refused(worker, batch, number, {})
        batch_driving.postpone_line(worker, batch, number, pause_s=9)
    for number in (1, 5):
        batch_driving.postpone_result(worker, batch, number, pause_s=9)
    assert _rows_of(rows, batch) == before
    assert batch_driving.refuse_pending(worker, batch, ERROR) == 1

    assert _states(rows, batch) == STATES | {1: "refused"}
    [line] = [line for line in _rows_of(rows, batch)[1:] if line["number"] == 1]
    assert (line["error"], line["body"]) == (ERROR, None)


def test_a_line_that_is_postponed_is_not_pending_until_its_time(
    worker: DictConnection, rows: Rows
) -> None:
    batch = _batch(rows, rows.tenant(), num_lines=2)

    batch_driving.postpone_line(worker, batch, 1, pause_s=60)
    waiting = batch_driving.pending_lines(worker, batch, limit=9, max_bytes=99)
    row = rows.one(
        "SELECT num_tries, extract(epoch FROM try_at - now())::float8 AS pause_s FROM batch_lines"
        " WHERE number = 1"
    )
    rows.connection.execute("UPDATE batch_lines SET try_at = now() WHERE number = 1")
    due = batch_driving.pending_lines(worker, batch, limit=9, max_bytes=99)

    assert [line["number"] for line in waiting] == [2]
    assert row["num_tries"] == 1
    assert 50 < row["pause_s"] <= 60
    assert [(line["number"], line["num_tries"]) for line in due] == [(1, 1), (2, 0)]


def test_a_result_that_is_postponed_is_not_written_until_its_time(
    worker: DictConnection, rows: Rows
) -> None:
    batch, _ = _full(rows, rows.tenant())

    def found() -> list[tuple[int, int]]:
        lines = batch_results.lines_to_write(worker, batch, limit=9)
        return sorted((line["number"], line["num_tries"]) for line in lines)

    before = found()
    batch_driving.postpone_result(worker, batch, 3, pause_s=60)
    waiting = found()
    rows.connection.execute("UPDATE batch_lines SET try_at = now() WHERE number = 3")

    assert (before, waiting, found()) == ([(3, 0), (4, 0)], [(4, 0)], [(3, 1), (4, 0)])
    assert batch_driving.left(worker, batch) == Left(2, 1, has_pending=True, num_put_off=1)


def test_lines_that_begin_alike_are_submitted_beside_each_other(
    worker: DictConnection, rows: Rows
) -> None:
    batch = _batch(rows, rows.tenant())
    lines = [{**_line(n), "prefix": prefix} for n, prefix in enumerate((b"b", b"a", b"b", b"a"), 1)]
    batch_driving.add_lines(worker, batch, lines)

    found = batch_driving.pending_lines(worker, batch, limit=3, max_bytes=99)
    few = batch_driving.pending_lines(worker, batch, limit=9, max_bytes=5)

    assert [line["number"] for line in found] == [2, 4, 1]
    assert [line["number"] for line in few] == [2, 4, 1]  # of two bytes each
    assert found[0] == {"number": 2, "custom_id": "line-2", "body": b"{}", "num_tries": 0}


def test_what_is_left_of_a_batch(worker: DictConnection, rows: Rows) -> None:
    tenant = rows.tenant()
    batch, [running, done, _] = _full(rows, tenant)
    _full(rows, tenant)

    assert batch_driving.left(worker, batch) == Left(2, 1, has_pending=True)
    assert batch_driving.running_jobs(worker, batch, limit=9) == [running]
    found = list(batch_results.lines_to_write(worker, batch, limit=9))
    assert sorted((row["number"], row["id"]) for row in found) == [(3, done), (4, None)]
    rows.connection.execute("UPDATE jobs SET cancel_requested_at = now() WHERE id = %s", (running,))
    assert batch_driving.running_jobs(worker, batch, limit=9) == []


@pytest.mark.parametrize(
    ("left", "is_nothing"),
    [
        (Left(0, 0, has_pending=False), True),
        (Left(1, 0, has_pending=False), False),
        (Left(0, 1, has_pending=False), False),
        (Left(0, 0, has_pending=True), False),
    ],
)
def test_when_nothing_is_left(left: Left, is_nothing: bool) -> None:
    assert left.is_nothing is is_nothing


def test_results_that_are_written_are_counted_and_their_files_kept(
    worker: DictConnection, rows: Rows
) -> None:
    batch, _ = _full(rows, rows.tenant())
    leased = _lease(worker, batch)
    files = [uuid7() for _ in range(3)]
    rows.connection.execute("UPDATE batches SET num_completed = 5, input_tokens = 100")

    assert batch_driving.note_over(worker, leased, _written(3, output=files[0]))
    assert batch_driving.note_over(worker, leased, _written(4, output=files[1], error=files[2]))

    row, *lines = _rows_of(rows, batch)
    counted = ("num_completed", "num_failed", "input_tokens", "cached_tokens", "output_tokens")
    assert [row[name] for name in counted] == [7, 4, 120, 6, 8]
    assert (row["output_file_id"], row["error_file_id"]) == (files[0], files[2])
    assert _states(rows, batch) == STATES | {3: "over", 4: "over"}
    assert {(line["body"], line["error"]) for line in lines[2:4]} == {(None, None)}


@pytest.mark.parametrize("numbers", [(1,), (5,), (3, 5), (3, 77)])
def test_results_of_lines_that_are_not_to_be_written_are_refused(
    worker: DictConnection, rows: Rows, numbers: tuple[int, ...]
) -> None:
    batch, _ = _full(rows, rows.tenant())

    assert not batch_driving.note_over(worker, _lease(worker, batch), _written(*numbers))


def test_a_custom_id_is_taken_once_in_a_batch(worker: DictConnection, rows: Rows) -> None:
    tenant = rows.tenant()
    batch, other = _batch(rows, tenant), _batch(rows, tenant)
    again = _line(2) | {"custom_id": "line-1"}

    assert batch_driving.add_lines(worker, batch, [_line(1), again, _line(3)]) == {1, 3}
    assert batch_driving.add_lines(worker, batch, [again]) == set()
    assert batch_driving.add_lines(worker, other, [again]) == {2}


def test_what_a_step_has_read_is_noted(worker: DictConnection, rows: Rows) -> None:
    batch = _batch(rows, rows.tenant(), status="validating")
    leased = _lease(worker, batch)

    for _ in range(2):
        batch_driving.advance(
            worker, leased, ReadLines([], 70, 8), num_added=3, mistakes=[{"code": "x"}]
        )

    row = _rows_of(rows, batch)[0]
    read = (row["read_bytes"], row["read_lines"], row["num_total"], row["errors"])
    assert read == (70, 8, 6, [{"code": "x"}])


@pytest.mark.parametrize(
    ("status", "shown"),
    [("validating", "in_progress"), ("cancelling", "cancelling"), ("in_progress", "in_progress")],
)
def test_a_batch_begins_once_and_a_cancel_stands(
    worker: DictConnection, rows: Rows, status: str, shown: str
) -> None:
    batch = _batch(rows, rows.tenant(), status=status)

    batch_driving.begin(worker, _lease(worker, batch))

    row = _rows_of(rows, batch)[0]
    assert row["status"] == shown
    assert (row["in_progress_at"] is not None) == (status != "in_progress")


def _ended(
    worker: DictConnection, rows: Rows, act: Act, status: str, **columns: Any
) -> tuple[dict[str, Any], list[float]]:
    """A batch's row once it is over, and how long its files stay."""
    tenant = rows.tenant()
    batch = _batch(rows, tenant, status=status)
    files = [open_output(rows.connection, tenant, filename="x") for _ in range(3)]
    rows.connection.execute(
        "UPDATE batches SET output_file_id = %s, waits_for = '{}', num_total = 5,"
        " num_completed = 4, num_failed = 3, output_ttl_s = %s",
        (files[0], columns.get("output_ttl_s")),
    )
    act(worker, _lease(worker, batch))
    limits = rows.connection.execute(
        "SELECT extract(epoch FROM expires_at - created_at)::float8 AS ttl_s FROM files"
        " WHERE expires_at IS NOT NULL"
    )
    return _rows_of(rows, batch)[0], [row["ttl_s"] for row in limits.fetchall()]


@pytest.mark.parametrize("status", ["completed", "expired", "cancelled"])
def test_a_batch_that_ended(worker: DictConnection, rows: Rows, status: str) -> None:
    row, limits = _ended(
        worker, rows, lambda c, b: batch_driving.end(c, b, status), "in_progress", output_ttl_s=7200
    )

    assert (row["status"], row["num_total"]) == (status, 7)
    stamps = {name: row[f"{name}_at"] is not None for name in ("completed", "expired", "cancelled")}
    assert stamps == {name: name == status for name in stamps}
    assert row["finalizing_at"] is not None
    assert (row["owner"], row["leased_until"], row["waits_for"]) == (None, None, None)
    assert limits == [7200]


@pytest.mark.parametrize(("status", "num_total"), [("validating", 0), ("in_progress", 5)])
def test_a_batch_that_failed(
    worker: DictConnection, rows: Rows, status: str, num_total: int
) -> None:
    row, limits = _ended(
        worker, rows, lambda c, b: batch_driving.fail(c, b, [{"code": "x"}]), status
    )

    assert (row["status"], row["num_total"]) == ("failed", num_total)
    assert row["errors"] == [{"code": "x"}]
    assert row["failed_at"] is not None
    assert (row["owner"], row["leased_until"], row["waits_for"]) == (None, None, None)
    assert limits == [BATCH_TTL_S]


def test_many_lines_are_forgotten_and_refused_some_at_a_time(
    worker: DictConnection, rows: Rows
) -> None:
    batch = _batch(rows, rows.tenant(), num_lines=FORGET_AT_ONCE + 3)

    refused = [batch_driving.refuse_pending(worker, batch, ERROR) for _ in range(3)]
    forgotten = [batch_driving.forget_lines(worker, batch) for _ in range(3)]

    assert refused == forgotten == [FORGET_AT_ONCE, 3, 0]


def test_what_a_driver_of_the_release_before_left_is_counted(
    worker: DictConnection, rows: Rows
) -> None:
    tenant = rows.tenant()
    batch, _ = _full(rows, tenant)
    _full(rows, tenant)
    leased = _lease(worker, batch)

    batch_driving.take_over(worker, leased)

    row = _rows_of(rows, batch)[0]  # of the one line that is over
    assert (row["input_tokens"], row["cached_tokens"], row["output_tokens"]) == (10, 3, 4)
    assert row["status"] == "in_progress"


@pytest.mark.parametrize(("num_total", "read_bytes"), [(2, 9), (3, 0)])
def test_a_file_is_read_anew_only_if_its_lines_are_not_what_was_counted(
    worker: DictConnection, rows: Rows, num_total: int, read_bytes: int
) -> None:
    batch = _batch(rows, rows.tenant(), status="validating", num_lines=2)
    rows.connection.execute(
        "UPDATE batches SET num_total = %s, read_bytes = 9, errors = '[1]'", (num_total,)
    )

    batch_driving.take_over(worker, _lease(worker, batch))

    row = _rows_of(rows, batch)[0]
    assert row["read_bytes"] == read_bytes
    assert row["errors"] == ([1] if read_bytes else [])
