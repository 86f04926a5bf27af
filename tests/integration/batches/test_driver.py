"""A driver's promises: every line once, one batch's fault is its own, waiting costs nothing."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from psycopg import OperationalError
from psycopg.errors import AdminShutdown, DiskFull, QueryCanceled

from api.admission import Admission, Submission
from billing.ledger import top_up
from store import batch_driving, batch_turns
from store.admission import LineNotPending
from store.faults import is_outage
from store.file_contents import FileContents, PartsReader
from store.tenants import find_api_key
from tests.integration.batches.conftest import URL, Batches
from tests.support.poison import refuse
from workers.batches.driver import Driver
from workers.batches.reading import SLICE_LINES, FileReader, LeaseLost
from workers.batches.rests import MAX_LINE_TRIES, MAX_TRIES
from workers.batches.writing import LineWriter, LineWriterFenced


class _Failing:
    """An admission that fails for some lines by a fault without a name."""

    def __init__(self, admission: Admission, error: Exception, *, of: str) -> None:
        self._admission = admission
        self._error = error
        self._of = of
        self.registry = admission.registry

    async def submit(self, submission: Submission) -> Any:
        if submission.known.get("user") == self._of:
            raise self._error
        return await self._admission.submit(submission)


class _Opened(FileContents):
    """Counts how often anything is read."""

    def __init__(self, contents: FileContents) -> None:
        super().__init__(contents._root)
        self.num = 0

    def open(self, *args: Any, **named: Any) -> PartsReader:
        self.num += 1
        return super().open(*args, **named)


def _ended(batches: Batches, *ids: UUID) -> bool:
    batches.end_jobs()
    return all(batches.row(id_)["owner"] is None and _is_over(batches, id_) for id_ in ids)


def _is_over(batches: Batches, batch_id: UUID) -> bool:
    return batches.row(batch_id)["status"] in ("completed", "failed", "cancelled", "expired")


def _begun(batches: Batches, batch_id: UUID) -> bool:
    return bool(batches.row(batch_id)["status"] == "in_progress")


def test_every_line_ends_in_one_file_and_its_tokens_on_the_row(batches: Batches) -> None:
    batch = batches.add(batches.tenant(), [{}, {"temperature": 9}, {}])

    batches.drive(lambda: _ended(batches, batch))

    row = batches.row(batch)
    assert (row["status"], row["num_total"]) == ("completed", 3)
    assert [line["custom_id"] for line in batches.lines(batch)] == ["line-1", "line-3"]
    assert [line["custom_id"] for line in batches.lines(batch, "error_file_id")] == ["line-2"]
    [sums] = batches.rows.connection.execute(
        "SELECT sum(input_tokens) AS i, sum(cached_tokens) AS c, sum(output_tokens) AS o FROM jobs"
    ).fetchall()
    counted = (row["input_tokens"], row["cached_tokens"], row["output_tokens"])
    assert counted == (sums["i"], sums["c"], sums["o"])
    assert counted[2] == 8
    assert batches.rows.one("SELECT count(*) AS num FROM batch_lines")["num"] == 0


def test_a_refusal_that_quotes_a_nul_stops_nobody(batches: Batches) -> None:
    ugly = {"structured_outputs": {"json": '{"type": "x\\u0000"}'}}
    batch = batches.add(batches.tenant(), [ugly, {}])
    other = batches.add(batches.tenant(), [{}])

    batches.drive(lambda: _ended(batches, batch, other))

    [line] = batches.lines(batch, "error_file_id")
    assert line["response"]["status_code"] == 400
    assert len(batches.lines(batch)) == len(batches.lines(other)) == 1


@pytest.mark.parametrize("ugly", ["\\u0000", "\\ud83d"], ids=["nul", "surrogate"])
def test_a_custom_id_that_can_not_be_stored_stops_nobody(batches: Batches, ugly: str) -> None:
    line = f'{{"custom_id": "a{ugly}", "url": "{URL}", "body": {{}}}}\n'.encode()
    ugly_batch = batches.add(batches.tenant(), [line])
    other = batches.add(batches.tenant(), [{}])

    batches.drive(lambda: _ended(batches, ugly_batch, other))

    row = batches.row(ugly_batch)
    assert (row["status"], row["errors"][0]["line"]) == ("failed", 1)
    assert batches.row(other)["status"] == "completed"


def test_a_line_that_keeps_failing_is_refused_and_the_others_go_on(batches: Batches) -> None:
    batch = batches.add(batches.tenant(), [{"user": "bad"}, {}])

    batches.drive(
        lambda: _ended(batches, batch),
        admission=lambda real: _Failing(real, ZeroDivisionError(), of="bad"),
    )

    [line] = batches.lines(batch, "error_file_id")
    assert line["custom_id"] == "line-1"
    assert line["response"]["body"]["error"]["code"] == "server_error"
    assert [line["custom_id"] for line in batches.lines(batch)] == ["line-2"]


def test_a_line_is_tried_again_before_it_is_refused(batches: Batches) -> None:
    batch = batches.add(batches.tenant(), [{"user": "bad"}])

    def tries() -> int:
        row = batches.rows.connection.execute("SELECT num_tries FROM batch_lines").fetchone()
        return int(row["num_tries"]) if row else 0

    batches.drive(
        lambda: tries() == MAX_LINE_TRIES - 1,
        admission=lambda real: _Failing(real, ZeroDivisionError(), of="bad"),
    )

    assert batches.row(batch)["num_failed"] == 0


def test_a_batch_that_keeps_failing_is_failed_and_holds_up_no_other(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, other = (batches.add(batches.tenant(), [{}]) for _ in range(2))
    real = LineWriter.write

    def write(self: LineWriter, row: dict[str, Any]) -> int:
        if row["id"] == batch:
            raise ZeroDivisionError
        return real(self, row)

    monkeypatch.setattr(LineWriter, "write", write)
    batches.drive(lambda: _ended(batches, batch, other))

    assert batches.row(other)["status"] == "completed"
    failed = batches.row(batch)
    assert failed["status"] == "failed"
    assert [error["code"] for error in failed["errors"]] == ["server_error"]


def test_an_outage_of_postgres_is_no_batchs_fault(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batches.add(batches.tenant(), [{}])

    def away(*_: Any) -> int:
        raise OperationalError("the connection is lost")

    async def act(driver: Driver) -> None:
        monkeypatch.setattr(FileReader, "step", away)
        for _ in range(MAX_TRIES + 1):
            batches.wake()
            with pytest.raises(OperationalError):
                await driver.step()
            await driver._release_left()

    batches.run(act)

    assert batches.row(batch)["num_tries"] == 0
    assert batches.row(batch)["status"] == "validating"


def test_a_batch_whose_row_takes_nothing_holds_up_none_not_even_its_tenants(
    batches: Batches,
) -> None:
    tenant = batches.tenant()
    stuck, beside = (batches.add(tenant, [{}]) for _ in range(2))
    other = batches.add(batches.tenant(), [{}])
    batches.rows.connection.execute("UPDATE batches SET next_step_at = now()")
    refuse(batches.rows.connection, "batches", "id", stuck)

    async def act(driver: Driver) -> None:
        for _ in range(60):
            batches.rows.connection.execute(
                "UPDATE batches SET next_step_at = now() WHERE id <> %s", (stuck,)
            )
            await driver.step()
            batches.end_jobs()

    batches.run(act)

    assert [batches.row(id_)["status"] for id_ in (stuck, beside, other)] == [
        "validating",
        "completed",
        "completed",
    ]


def test_a_step_whose_end_can_not_be_noted_holds_up_no_other_batch(batches: Batches) -> None:
    """The batch is due again once its lease is over, and the step counts as a failed one."""
    stuck = batches.add(batches.tenant(), [{}])
    other = batches.add(batches.tenant(), [{}])
    batches.rows.refuse_updates("batches", f"NEW.id = '{stuck}' AND NEW.owner IS NULL")

    async def act(driver: Driver) -> None:
        for _ in range(40):
            batches.rows.connection.execute(
                "UPDATE batches SET next_step_at = now() WHERE id = %s", (other,)
            )
            await driver.step()
            batches.end_jobs()

    batches.run(act)

    assert batches.row(other)["status"] == "completed"
    assert batches.row(stuck)["owner"] is not None


def test_a_payment_wakes_batches_beside_one_that_can_not_be_woken(batches: Batches) -> None:
    tenant = batches.tenant()
    stuck, other = (batches.add(tenant, [{}]) for _ in range(2))
    batches.rows.connection.execute(
        "UPDATE batches SET next_step_at = now() + interval '1 minute',"
        """ waits_for = '{"code": "insufficient_quota"}'"""
    )
    refuse(batches.rows.connection, "batches", "id", stuck)

    top_up(batches.rows.connection, tenant, 1_000_000, "payment")

    with batches.pool.connection() as connection:
        assert batch_turns.due(connection) == [other]


def test_what_counts_as_an_outage() -> None:
    assert is_outage(OperationalError("no route"))
    assert is_outage(AdminShutdown())
    assert is_outage(DiskFull())
    assert not is_outage(QueryCanceled())
    assert not is_outage(ZeroDivisionError())


def test_a_revoked_key_submits_nothing(batches: Batches) -> None:
    batch = batches.add(batches.tenant(), [{}, {}])
    batches.rows.connection.execute("UPDATE api_keys SET revoked_at = now()")

    batches.drive(lambda: _ended(batches, batch))

    codes = {
        line["response"]["body"]["error"]["code"] for line in batches.lines(batch, "error_file_id")
    }
    assert codes == {"invalid_api_key"}
    assert batches.rows.one("SELECT count(*) AS num FROM jobs")["num"] == 0


def test_without_credit_lines_wait_ever_longer_until_it_is_paid(batches: Batches) -> None:
    tenant = batches.tenant(credit_micros=0)
    batch = batches.add(tenant, [{}, {}])

    batches.drive(lambda: batches.row(batch)["num_pauses"] >= 5)

    row = batches.row(batch)
    assert row["waits_for"]["code"] == "insufficient_quota"
    assert row["num_failed"] == 0
    pause = batches.rows.one(
        "SELECT extract(epoch FROM next_step_at - now())::float8 AS s FROM batches"
    )["s"]
    assert pause > 10
    with batches.pool.connection() as connection:
        assert batch_turns.due(connection) == []
    top_up(batches.rows.connection, tenant, 1_000_000, "payment")
    with batches.pool.connection() as connection:
        assert batch_turns.due(connection) == [batch]
    batches.drive(lambda: _ended(batches, batch))
    assert batches.row(batch)["num_completed"] == 2
    assert batches.row(batch)["waits_for"] is None


def test_tenants_take_turns_whatever_each_submits(batches: Batches) -> None:
    hog, other = batches.tenant(), batches.tenant()
    for _ in range(5):
        batches.add(hog, [{}] * 3)
    one = batches.add(other, [{}])

    with batches.pool.connection() as connection:
        due = batch_turns.due(connection)

    assert len(due) == 2
    assert one in due


def test_tenants_take_turns_while_their_files_are_read(batches: Batches) -> None:
    hog = batches.tenant()
    long = [batches.add(hog, [{}] * (SLICE_LINES + 1)) for _ in range(2)]
    one = batches.add(batches.tenant(), [{}])

    async def steps(driver: Driver) -> None:
        for _ in range(2):
            batches.wake()
            await driver.step()

    batches.run(steps)

    assert _begun(batches, one)
    assert sum(batches.row(batch)["read_lines"] for batch in long) == SLICE_LINES


def test_files_of_batches_that_wait_for_credit_are_not_read_again(batches: Batches) -> None:
    broke = batches.tenant(credit_micros=0)
    waiting = [batches.add(broke, [{}] * 3) for _ in range(10)]
    batches.drive(lambda: all(batches.row(batch)["num_pauses"] for batch in waiting))
    batches.contents = opened = _Opened(batches.contents)

    async def turns(driver: Driver) -> None:
        for _ in waiting:
            batches.wake()
            assert await driver.step()
        batches.rows.connection.execute("UPDATE batches SET next_step_at = now() + interval '1 h'")
        while await driver.step():  # what is left of the round
            pass
        assert not await driver.step()

    batches.run(turns)

    assert opened.num == 0
    assert all(batches.row(batch)["num_pauses"] for batch in waiting)
    assert batches.rows.one("SELECT count(*) AS num FROM jobs")["num"] == 0


def test_a_fenced_writer_writes_nothing(batches: Batches) -> None:
    batch = batches.add(batches.tenant(), [{}])
    batches.drive(lambda: _submitted(batches) == 1)
    batches.end_jobs()
    row = batches.lease(batch)
    _take_away(batches, batch)

    async def act(driver: Driver) -> None:
        with pytest.raises(LineWriterFenced):
            driver._writer.write(row)

    batches.run(act)

    assert _submitted(batches) == 1
    assert batches.row(batch)["output_file_id"] is None
    parts = "SELECT count(*) AS num FROM file_parts p JOIN files f ON f.id = p.file_id"
    assert batches.rows.one(f"{parts} WHERE f.filename = 'output.jsonl'")["num"] == 0


def test_a_fenced_reader_adds_nothing(batches: Batches) -> None:
    batch = batches.add(batches.tenant(), [{}])
    row = batches.lease(batch)
    _take_away(batches, batch)

    with pytest.raises(LeaseLost):
        FileReader(batches.pool, batches.contents, row).step()

    assert batches.rows.one("SELECT count(*) AS num FROM batch_lines")["num"] == 0
    assert batches.row(batch)["read_bytes"] == 0


def test_a_slow_driver_makes_no_job_of_a_line_that_was_cancelled(batches: Batches) -> None:
    batch = batches.add(batches.tenant(), [{}])
    batches.drive(lambda: _begun(batches, batch))
    row = batches.lease(batch)
    with batches.pool.connection() as connection:
        [line] = batch_driving.pending_lines(connection, batch, limit=1, max_bytes=1)
        assert batch_driving.refuse_pending(connection, batch, {"error": {}}) == 1

    async def act(driver: Driver) -> None:
        key = await find_api_key(driver._api_pool, row["api_key_id"])
        with pytest.raises(LineNotPending):
            await driver._submitter._admit(row, key, line)

    batches.run(act)

    for table in ("jobs", "reservations", "idempotency_keys"):
        assert batches.rows.one(f"SELECT count(*) AS num FROM {table}")["num"] == 0


def test_a_job_and_its_line_become_so_by_one_statement(batches: Batches) -> None:
    batch = batches.add(batches.tenant(), [{}, {}])

    batches.drive(lambda: _submitted(batches) == 2)

    [row] = batches.rows.connection.execute(
        "SELECT count(*) AS num FROM batch_lines l JOIN jobs j ON j.id = l.job_id"
        " WHERE j.batch_id = %s AND j.idempotency_key LIKE '%%:' || l.number",
        (batch,),
    ).fetchall()
    assert row["num"] == 2


def test_outputs_expire_thirty_days_after_they_were_made(batches: Batches) -> None:
    batch = batches.add(batches.tenant(), [{}])

    batches.drive(lambda: _ended(batches, batch))

    days = batches.rows.one(
        "SELECT extract(day FROM expires_at - created_at)::int AS days FROM files WHERE id = %s",
        batches.row(batch)["output_file_id"],
    )["days"]
    assert days == 30


def test_a_result_that_can_not_be_shown_is_an_error_line(batches: Batches) -> None:
    batch = batches.add(batches.tenant(), [{}, {}])
    batches.drive(lambda: _submitted(batches) == 2)
    batches.end_jobs()
    batches.rows.connection.execute(
        "UPDATE job_results SET output = '[7]' WHERE job_id ="
        " (SELECT job_id FROM batch_lines WHERE number = 1)"
    )

    batches.drive(lambda: _is_over(batches, batch))

    [line] = batches.lines(batch, "error_file_id")
    assert (line["custom_id"], line["response"]["status_code"]) == ("line-1", 500)
    assert [line["custom_id"] for line in batches.lines(batch)] == ["line-2"]


@pytest.mark.parametrize("slice_bytes", [300, 1_000, 1 << 20])
def test_a_file_is_read_in_slices_and_gone_on_with(batches: Batches, slice_bytes: int) -> None:
    batch = batches.add(batches.tenant(), [{} for _ in range(9)])

    for _ in range(20):
        if _begun(batches, batch):
            break
        row = batches.lease(batch)
        FileReader(batches.pool, batches.contents, row, slice_bytes=slice_bytes).step()
        with batches.pool.connection() as connection:
            batch_turns.release(connection, row, batch_turns.Rest(pause_s=0))

    numbers = batches.rows.connection.execute("SELECT number FROM batch_lines ORDER BY 1")
    assert [row["number"] for row in numbers] == list(range(1, 10))
    assert batches.row(batch)["num_total"] == 9


def test_a_duplicate_of_an_earlier_slice_fails_the_batch_and_leaves_no_line(
    batches: Batches,
) -> None:
    first = b'{"custom_id": "a", "url": "/v1/chat/completions", "body": {}}\n'
    batch = batches.add(batches.tenant(), [first, b"\n", first, b"no json\n"])

    batches.drive(lambda: _is_over(batches, batch))

    row = batches.row(batch)
    found = [(error["code"], error["line"]) for error in row["errors"]]
    assert sorted(found) == [("duplicate_custom_id", 3), ("invalid_json_line", 4)]
    assert (row["status"], row["num_total"]) == ("failed", 0)
    assert batches.rows.one("SELECT count(*) AS num FROM batch_lines")["num"] == 0


def _submitted(batches: Batches) -> int:
    row = batches.rows.one("SELECT count(*) AS num FROM batch_lines WHERE state = 'submitted'")
    return int(row["num"])


def _take_away(batches: Batches, batch_id: UUID) -> None:
    """Its lease is over, and another driver has it."""
    batches.rows.connection.execute("UPDATE batches SET leased_until = now() - interval '1 s'")
    batches.lease(batch_id)
