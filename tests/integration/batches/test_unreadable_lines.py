"""Results that Postgres can't read: their lines alone are put off or end with an error."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from store.batch_turns import BatchRow
from tests.integration.batches.conftest import Batches
from tests.integration.batches.test_long_lines import _files, _num_submitted
from workers.batches.driver import Driver
from workers.batches.rests import MAX_WRITES
from workers.batches.writing import LineWriter, LineWriterFenced

NUM_LINES = 5


def _over(batches: Batches) -> UUID:
    batch = batches.add(batches.tenant(), [{}] * NUM_LINES)
    batches.drive(lambda: _num_submitted(batches, batch) == NUM_LINES)
    batches.end_jobs()
    return batch


def _spoil(batches: Batches, number: int, sqlstate: str) -> None:
    """Whoever reads the result of this line meets an error of Postgres'."""
    job_id = batches.rows.one("SELECT job_id FROM batch_lines WHERE number = %s", number)["job_id"]
    connection = batches.rows.connection
    connection.execute(
        "CREATE FUNCTION spoil(job_id uuid, output jsonb) RETURNS jsonb LANGUAGE plpgsql AS"
        f" $$ BEGIN IF job_id = '{job_id}' THEN RAISE EXCEPTION USING ERRCODE = '{sqlstate}';"
        " END IF; RETURN output; END $$".encode()
    )
    connection.execute("ALTER TABLE job_results RENAME TO job_results_kept")
    connection.execute(
        "CREATE VIEW job_results AS SELECT job_id, tenant_id, last_seq,"
        " spoil(job_id, output) AS output FROM job_results_kept"
    )
    connection.execute("GRANT SELECT ON job_results TO millrace_worker")


def _mend(batches: Batches) -> None:
    batches.rows.connection.execute(
        "CREATE OR REPLACE FUNCTION spoil(job_id uuid, output jsonb) RETURNS jsonb LANGUAGE sql AS"
        " 'SELECT output'"
    )


def _steps(batches: Batches, batch: UUID, row: BatchRow, **limits: int) -> list[int]:
    """How many lines each step writes, until one has nothing to write or to put off."""
    nums: list[int] = []

    async def act(driver: Driver) -> None:
        registry = driver._submitter._admission.registry
        writer = LineWriter(batches.pool, batches.contents, registry, **limits)
        while _is_due(batches):
            nums.append(writer.write(row | _files(batches, batch)))

    batches.run(act)
    return nums


def _is_due(batches: Batches) -> bool:
    query = "SELECT count(*) AS num FROM batch_lines WHERE state = 'submitted' AND try_at IS NULL"
    return bool(batches.rows.one(query)["num"])


def _ids(batches: Batches, batch: UUID, column: str = "output_file_id") -> list[Any]:
    return sorted(line["custom_id"] for line in batches.lines(batch, column))


@pytest.mark.parametrize("number", [1, 3, NUM_LINES])
@pytest.mark.parametrize("long_bytes", [1 << 20, 0])
@pytest.mark.parametrize("sqlstate", ["53200", "57014"])
def test_one_that_can_not_be_read_at_the_moment_is_put_off(
    batches: Batches, number: int, long_bytes: int, sqlstate: str
) -> None:
    batch = _over(batches)
    _spoil(batches, number, sqlstate)
    row = batches.lease(batch)

    _steps(batches, batch, row, long_bytes=long_bytes)

    others = [f"line-{other}" for other in range(1, NUM_LINES + 1) if other != number]
    assert _ids(batches, batch) == others
    assert batches.row(batch)["error_file_id"] is None
    query = "SELECT num_tries FROM batch_lines WHERE number = %s"
    assert batches.rows.one(query, number) == {"num_tries": 1}

    _mend(batches)
    batches.wake()
    assert _steps(batches, batch, row) == [1]
    assert _ids(batches, batch) == sorted([*others, f"line-{number}"])


@pytest.mark.parametrize(("sqlstate", "num_before"), [("XX001", 0), ("57014", MAX_WRITES - 1)])
def test_one_that_can_never_be_read_is_an_error(
    batches: Batches, sqlstate: str, num_before: int
) -> None:
    batch = _over(batches)
    _spoil(batches, 2, sqlstate)
    batches.rows.connection.execute("UPDATE batch_lines SET num_tries = %s", (num_before,))

    _steps(batches, batch, batches.lease(batch))

    assert _ids(batches, batch) == ["line-1", "line-3", "line-4", "line-5"]
    [error] = batches.lines(batch, "error_file_id")
    assert (error["custom_id"], error["response"]["status_code"]) == ("line-2", 500)
    assert error["response"]["request_id"].startswith("job_")
    assert batches.row(batch)["output_tokens"] == 4 * NUM_LINES  # it is paid for all the same


def test_a_driver_that_was_overtaken_puts_nothing_off(batches: Batches) -> None:
    batch = _over(batches)
    _spoil(batches, 1, "57014")
    stale = batches.lease(batch)
    batches.rows.connection.execute("UPDATE batches SET leased_until = now() - interval '1 s'")
    batches.lease(batch)

    with pytest.raises(LineWriterFenced):
        _steps(batches, batch, stale)

    assert batches.rows.one("SELECT sum(num_tries) AS num FROM batch_lines") == {"num": 0}


def test_a_line_that_was_put_off_is_written_at_once_when_its_batch_is_cancelled(
    batches: Batches,
) -> None:
    batch = batches.add(batches.tenant(), [{}, {}])
    batches.drive(lambda: batches.row(batch)["status"] == "in_progress")
    connection = batches.rows.connection
    connection.execute("UPDATE batch_lines SET num_tries = 9, try_at = now() + interval '5 min'")
    connection.execute("UPDATE batches SET status = 'cancelling', next_step_at = now()")

    async def act(driver: Driver) -> None:
        for _ in range(6):
            connection.execute("UPDATE batches SET next_step_at = now()")
            await driver.step()

    batches.run(act)

    assert batches.row(batch)["status"] == "cancelled"
    assert _ids(batches, batch, "error_file_id") == ["line-1", "line-2"]


def test_tries_to_submit_a_line_are_none_to_write_it(batches: Batches) -> None:
    batch = batches.add(batches.tenant(), [{}])
    batches.drive(lambda: batches.row(batch)["status"] == "in_progress")
    batches.rows.connection.execute("UPDATE batch_lines SET num_tries = 9")

    batches.drive(lambda: _num_submitted(batches, batch) == 1)

    query = "SELECT num_tries, try_at FROM batch_lines"
    assert batches.rows.one(query) == {"num_tries": 0, "try_at": None}
