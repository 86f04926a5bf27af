"""Which lines a step writes, into which file, and what it leaves when it can't."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from psycopg import OperationalError
from psycopg.errors import (
    DataCorrupted,
    LockNotAvailable,
    OutOfMemory,
    QueryCanceled,
    UndefinedColumn,
)
from structlog.testing import capture_logs

from store import batch_driving
from tests.integration.batches.conftest import URL, Batches
from tests.integration.batches.test_long_lines import _files, _num_submitted
from workers.batches import submitting
from workers.batches.driver import Driver
from workers.batches.endpoints import ENDPOINTS
from workers.batches.gathering import MAX_NOT_SHOWN
from workers.batches.rests import MAX_WRITES
from workers.batches.showing import LineShower
from workers.batches.submitting import WINDOW
from workers.batches.writing import LineWriter, LineWriterFenced


def _over(batches: Batches, num_lines: int) -> UUID:
    """A batch whose lines' jobs are over, and stand in no file yet."""
    batch = batches.add(batches.tenant(), [{}] * num_lines)
    batches.drive(lambda: _num_submitted(batches, batch) == num_lines)
    batches.end_jobs()
    return batch


def _steps(batches: Batches, batch: UUID, row: dict[str, Any], **limits: int) -> list[int]:
    """How many lines each step writes, until one writes none."""
    nums: list[int] = []

    async def act(driver: Driver) -> None:
        registry = driver._submitter._admission.registry
        writer = LineWriter(batches.pool, batches.contents, registry, **limits)
        while num := writer.write(row | _files(batches, batch)):
            nums.append(num)

    batches.run(act)
    return nums


def _stored(tmp_path: Path) -> set[Path]:
    return {path for path in (tmp_path / "files").rglob("*") if path.is_file()}


def test_a_part_ends_with_the_line_that_fills_it(batches: Batches) -> None:
    first = _over(batches, 3)
    assert _steps(batches, first, batches.lease(first)) == [3]
    data = batches.rows.one(
        "SELECT num_bytes FROM files WHERE id = %s", batches.row(first)["output_file_id"]
    )
    second = _over(batches, 3)
    two_lines = data["num_bytes"] // 3 * 2  # they are of one length

    assert _steps(batches, second, batches.lease(second), part_bytes=two_lines) == [2, 1]

    shown = [line["custom_id"] for line in batches.lines(second)]
    assert shown == ["line-1", "line-2", "line-3"]
    assert batches.row(second)["error_file_id"] is None  # it has no line


def test_a_long_line_has_a_step_of_its_own_behind_short_ones(batches: Batches) -> None:
    batch = _over(batches, 2)
    batches.rows.connection.execute(
        "UPDATE job_results SET output = (SELECT jsonb_agg(jsonb_build_object('index', 0, 'text',"
        " md5(n::text), 'finish_reason', 'stop')) FROM generate_series(1, 400) n) WHERE job_id ="
        " (SELECT job_id FROM batch_lines WHERE number = 2)"
    )

    assert _steps(batches, batch, batches.lease(batch), long_bytes=1_000) == [1, 1]

    assert [line["custom_id"] for line in batches.lines(batch)] == ["line-1", "line-2"]


def test_a_driver_that_was_overtaken_leaves_no_contents(
    batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = _over(batches, 1)
    stale = batches.lease(batch)
    batches.rows.connection.execute("UPDATE batches SET leased_until = now() - interval '1 s'")
    batches.lease(batch)
    stored = _stored(tmp_path)

    with pytest.raises(LineWriterFenced):
        _steps(batches, batch, stale)
    assert _stored(tmp_path) == stored
    monkeypatch.setattr(batch_driving, "is_owned", lambda *_: True)  # it was, a moment ago
    with pytest.raises(LineWriterFenced):
        _steps(batches, batch, stale)

    assert _stored(tmp_path) == stored
    assert batches.row(batch)["output_file_id"] is None
    assert batches.rows.one("SELECT state FROM batch_lines")["state"] == "submitted"


def test_without_anything_to_write_nobody_asks_whose_the_batch_is(batches: Batches) -> None:
    batch = batches.add(batches.tenant(), [{}])
    stale = batches.lease(batch)
    batches.rows.connection.execute("UPDATE batches SET owner = NULL")

    assert _steps(batches, batch, stale) == []


def test_lines_of_a_file_that_its_owner_deleted_are_counted_and_not_kept(
    batches: Batches, tmp_path: Path
) -> None:
    batch = _over(batches, 2)
    row = batches.lease(batch)
    hold = "UPDATE jobs SET finished_at = NULL, status = 'queued' WHERE id = "
    batches.rows.connection.execute(
        f"{hold} (SELECT job_id FROM batch_lines WHERE number = 2)".encode()
    )
    assert _steps(batches, batch, row) == [1]
    batches.rows.connection.execute(
        "UPDATE files SET deleted_at = now() WHERE filename = 'output.jsonl'"
    )
    batches.rows.connection.execute(
        "UPDATE jobs SET finished_at = now(), status = 'completed' WHERE finished_at IS NULL"
    )
    stored = _stored(tmp_path)

    assert _steps(batches, batch, row) == [1]

    assert _stored(tmp_path) == stored
    assert batches.row(batch)["num_completed"] == 2


def test_a_line_is_shown_though_its_model_and_its_request_are_gone(batches: Batches) -> None:
    batch = _over(batches, 1)
    batches.rows.connection.execute("UPDATE jobs SET model = 'gone'")
    batches.rows.connection.execute("DELETE FROM job_payloads")

    assert _steps(batches, batch, batches.lease(batch)) == [1]

    [line] = batches.lines(batch)
    assert (line["custom_id"], line["response"]["body"]["model"]) == ("line-1", "gone")


def _shower(model: Any = None) -> LineShower:
    registry = cast(Any, SimpleNamespace(find=lambda _name: model))
    return LineShower(cast(Any, None), registry)


BATCH = {"id": UUID(int=1), "endpoint": URL, "is_late": False, "status": "in_progress"}
ROW = {
    "id": UUID(int=2),
    "number": 1,
    "custom_id": "a",
    "error": None,
    "status": "completed",
    "error_code": None,
    "error_message": None,
    "error_retryable": None,
    "reason": None,
    "output": [],
    "model": "m",
}


@pytest.mark.parametrize("request_", [None, {"model": "m", "seed": 3}])
@pytest.mark.parametrize("vocabulary", [None, "its words"])
def test_a_line_is_shown_by_its_endpoint_with_what_was_asked(
    monkeypatch: pytest.MonkeyPatch, request_: dict[str, Any] | None, vocabulary: str | None
) -> None:
    shown: list[Any] = []

    def show(job: Any) -> dict[str, int]:
        shown.append(job)
        return {"a": 1}

    monkeypatch.setitem(cast(Any, ENDPOINTS), URL, SimpleNamespace(show=show))
    codec = SimpleNamespace(vocabulary=vocabulary)
    model = SimpleNamespace(codec=codec) if vocabulary else None

    is_good, content = _shower(model)._content(BATCH, ROW | {"request": request_})

    response = {"status_code": 200, "request_id": "job_" + UUID(int=2).hex, "body": {"a": 1}}
    assert (is_good, content) == (True, {"response": response, "error": None})
    assert [(job.request, job.vocabulary) for job in shown] == [(request_ or {}, vocabulary)]


FAILED = ROW | {"status": "failed", "error_code": "worker_lost", "error_message": "It is gone."}
CANCELLED = ROW | {"status": "cancelled"}


@pytest.mark.parametrize(
    ("batch", "row", "code", "status"),
    [
        ({}, FAILED, "worker_lost", 503),
        ({}, CANCELLED, "cancelled", 409),
        ({"status": "cancelling"}, FAILED, "worker_lost", 503),
        ({"status": "cancelling"}, CANCELLED, "batch_cancelled", None),
        ({"is_late": True}, FAILED, "batch_expired", None),
        ({"is_late": True}, CANCELLED, "batch_expired", None),
    ],
)
def test_a_line_without_an_answer_says_why(
    batch: dict[str, Any], row: dict[str, Any], code: str, status: int | None
) -> None:
    is_good, content = _shower()._content(BATCH | batch, row | {"request": {}})

    assert not is_good
    response = content["response"]
    error = content["error"] or response["body"]["error"]
    assert (error["code"], response and response["status_code"]) == (code, status)


def _line_that_fails(
    monkeypatch: pytest.MonkeyPatch, error: Exception, *, num_tries: int
) -> tuple[bool, Any] | None:
    def fail(job: Any) -> Any:
        raise error

    monkeypatch.setitem(cast(Any, ENDPOINTS), URL, SimpleNamespace(show=fail))
    row = ROW | {"request": {}, "num_tries": num_tries}
    return _shower().show(BATCH, row, cast(Any, None))


@pytest.mark.parametrize("num_tries", [0, MAX_WRITES])
def test_an_outage_is_no_fault_of_a_line(monkeypatch: pytest.MonkeyPatch, num_tries: int) -> None:
    with pytest.raises(OperationalError):
        _line_that_fails(monkeypatch, OperationalError(), num_tries=num_tries)


OF_THE_MOMENT = (
    OSError(errno.ENOSPC, "No space left on device"),
    FileNotFoundError("No usable temporary directory found"),
    MemoryError(),
    OutOfMemory(),
    QueryCanceled(),
    LockNotAvailable(),
    UndefinedColumn(),
)


@pytest.mark.parametrize("error", OF_THE_MOMENT, ids=lambda error: type(error).__name__)
def test_what_may_be_wrong_with_the_moment_ends_no_line_while_tries_are_left(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with capture_logs() as logs:
        for num_tries in (0, MAX_WRITES - 2):
            assert _line_that_fails(monkeypatch, error, num_tries=num_tries) is None
        shown = _line_that_fails(monkeypatch, error, num_tries=MAX_WRITES - 1)

    assert shown is not None
    is_good, line = shown
    assert not is_good
    assert b'"status_code":500' in line
    assert [each["is_final"] for each in logs] == [False, False, True]


@pytest.mark.parametrize("error", [ValueError(), DataCorrupted()], ids=lambda e: type(e).__name__)
def test_a_result_that_can_not_be_shown_is_an_error_at_once(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with capture_logs() as logs:
        shown = _line_that_fails(monkeypatch, error, num_tries=0)

    assert shown is not None
    is_good, line = shown
    assert not is_good
    assert isinstance(line, bytes)
    assert b'"status_code":500' in line
    assert [each["event"] for each in logs] == ["batch_line_not_shown"]


def test_a_step_tries_few_lines_in_vain(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes time, of a statement that has five seconds."""
    batch = _over(batches, MAX_NOT_SHOWN + 3)

    def fail(job: Any) -> Any:
        raise MemoryError

    monkeypatch.setitem(cast(Any, ENDPOINTS), URL, replace(ENDPOINTS[URL], show=fail))
    assert _steps(batches, batch, batches.lease(batch)) == [MAX_NOT_SHOWN, 3]

    tried = "SELECT sum(num_tries) AS num, max(num_tries) AS most FROM batch_lines"
    assert batches.rows.one(tried) == {"num": MAX_NOT_SHOWN + 3, "most": 1}


def test_a_line_that_can_not_be_shown_for_an_hour_is_an_error_and_holds_up_no_other(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window of jobs is over before the rest of the lines is submitted."""
    num_lines = WINDOW + 10
    batch = batches.add(batches.tenant(), [{"seed": number} for number in range(num_lines)])
    show, nums_written = ENDPOINTS[URL].show, []

    def fail_one(job: Any) -> Any:
        if job.request["seed"] == 3:
            nums_written.append(batches.row(batch)["num_completed"])
            raise MemoryError
        return show(job)

    def is_over() -> bool:
        batches.end_jobs()
        return bool(batches.row(batch)["status"] == "completed")

    monkeypatch.setattr(submitting, "STEP_S", 60.0)  # a step's lines, however slow the machine
    monkeypatch.setitem(cast(Any, ENDPOINTS), URL, replace(ENDPOINTS[URL], show=fail_one))
    batches.drive(is_over)

    assert len(nums_written) == MAX_WRITES
    assert nums_written[-1] == num_lines - 1
    [error] = batches.lines(batch, "error_file_id")
    assert (error["custom_id"], error["response"]["status_code"]) == ("line-4", 500)
