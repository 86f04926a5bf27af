"""What a step of a driver does with a batch, by what it finds, and what it says of it."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from psycopg import DataError, OperationalError
from psycopg.errors import QueryCanceled
from structlog.testing import capture_logs

from store.batch_driving import Left
from store.batch_turns import Rest
from tasks.errors import InternalError
from workers.batches import driver as driving
from workers.batches.driver import (
    CANCELS_A_STEP,
    CLEARING_TRIES,
    MAX_RENEWALS,
    NUM_STEPPERS,
    Driver,
)
from workers.batches.reading import LeaseLost
from workers.batches.rests import FIRST_WAIT_S, MAX_TRIES, TURN_S
from workers.batches.showing import ended_error
from workers.batches.submitting import MAX_PUT_OFF, WINDOW
from workers.batches.writing import LineWriterFenced

BATCH, OTHER, JOB, TENANT = (UUID(int=number) for number in range(1, 5))
WAITS = {"code": "insufficient_quota", "message": "No credit."}
NOTHING, RUNNING, PENDING = Left(0, 0, False), Left(1, 0, False), Left(7, 0, True)
OUTAGE = OperationalError("the connection is lost")


class _Driver(Driver):
    """Says what it asks of the store, of its writer and of its submitter, in order.

    `answers` of a name: one value, or a list of one for each time.
    """

    def __init__(self, **answers: Any) -> None:
        admission = cast(Any, SimpleNamespace(registry=None))
        nothing = cast(Any, None)
        super().__init__(pool=nothing, api_pool=nothing, admission=admission, contents=nothing)
        self.calls: list[tuple[Any, ...]] = []
        self.answers = {"write": 0, "submit": (0, None), "running_jobs": [], **answers}
        self._writer = cast(Any, SimpleNamespace(write=lambda row: self.answer("write", row)))
        self._submitter = cast(Any, SimpleNamespace(submit=self._submit))

    def answer(self, name: str, *arguments: Any) -> Any:
        self.calls.append((name, *arguments))
        answer = self.answers.get(name)
        if isinstance(answer, _Each):
            answer = answer.left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _submit(self, batch: Any, num_running: int) -> Any:
        return self.answer("submit", batch, num_running)

    async def _call(self, function: Any, *arguments: Any, **named: Any) -> Any:
        return self.answer(function.__name__, *arguments, *named.values())

    @property
    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


class _Each:
    """An answer for each time."""

    def __init__(self, *answers: Any) -> None:
        self.left = list(answers)


def _batch(**fields: Any) -> dict[str, Any]:
    return {
        "id": BATCH,
        "tenant_id": TENANT,
        "status": "in_progress",
        "is_late": False,
        "remaining_s": 60.0,
        "is_unfinished": False,
        "num_pauses": 2,
        "num_tries": 0,
        "waits_for": WAITS,
        **fields,
    }


@pytest.fixture(autouse=True)
def _jobs_and_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancels and readers stand among the calls of the driver that they were given."""

    async def cancel(_pool: Any, tenant_id: UUID, job_id: UUID, *, by: str) -> None:
        cancelled.append((tenant_id, job_id, by))

    class Reader:
        def __init__(self, _pool: Any, _contents: Any, batch: dict[str, Any]) -> None:
            self._batch = batch

        def step(self) -> None:
            was_read.append(self._batch)

    cancelled.clear()
    was_read.clear()
    monkeypatch.setattr(driving, "request_cancel", cancel)
    monkeypatch.setattr(driving, "FileReader", Reader)


cancelled: list[tuple[UUID, UUID, str]] = []
was_read: list[dict[str, Any]] = []


# Whose turn it is.


async def test_as_many_steps_at_a_time_as_there_are_steppers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver, served = _Driver(), []

    async def serve() -> None:
        served.append(1)

    monkeypatch.setattr(driver, "_serve", serve)
    await driver.run()

    assert len(served) == NUM_STEPPERS


async def test_a_round_is_gone_through_before_another_is_asked_for() -> None:
    first, second = _batch(), _batch(id=OTHER)
    driver = _Driver(
        due=_Each([BATCH, OTHER], []), lease=_Each(first, second), left=RUNNING, write=1
    )

    assert [await driver.step() for _ in range(3)] == [True, True, False]

    leased = [call for call in driver.calls if call[0] in ("due", "lease", "release")]
    rest = Rest(pause_s=0)
    assert leased == [
        ("due", []),
        ("lease", BATCH),
        ("release", first, rest),
        ("lease", OTHER),
        ("release", second, rest),
        ("due", []),
    ]


async def test_a_batch_that_another_driver_has_is_passed_over() -> None:
    driver = _Driver(due=[BATCH], lease=None)

    assert await driver.step() is True
    assert driver.names == ["due", "lease"]


async def test_a_batch_that_can_not_be_leased_is_set_aside_and_an_outage_is_not_its_fault() -> None:
    driver = _Driver(due=_Each([BATCH], [BATCH], []), lease=_Each(OUTAGE, DataError("its row")))

    with pytest.raises(OperationalError):
        await driver.step()
    with capture_logs() as logs:
        assert await driver.step() is True
    assert await driver.step() is False

    assert [call for call in driver.calls if call[0] == "due"] == [
        ("due", []),
        ("due", []),
        ("due", [BATCH]),
    ]
    assert [(line["event"], line["batch_id"]) for line in logs] == [("batch_not_leased", BATCH.hex)]


@pytest.mark.parametrize(
    ("error", "event"),
    [(OUTAGE, "batches_not_driven"), (ZeroDivisionError(), "batch_turn_failed")],
)
async def test_an_outage_is_told_in_a_line_and_a_fault_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, error: Exception, event: str
) -> None:
    class Stop(BaseException):
        pass

    async def end(seconds: float) -> None:
        assert seconds == TURN_S
        raise Stop

    driver = _Driver(due=error)
    monkeypatch.setattr(asyncio, "sleep", end)

    with capture_logs() as logs, pytest.raises(Stop):
        await driver._serve()

    assert [(line["event"], "exc_info" in line) for line in logs] == [(event, error is not OUTAGE)]


# What a step that failed leaves.


@pytest.mark.parametrize("error", [LeaseLost(), LineWriterFenced()])
async def test_a_batch_that_was_taken_away_is_not_released(error: Exception) -> None:
    driver = _Driver(write=error)

    with capture_logs() as logs:
        await driver._step(_batch())

    assert driver.names == ["write"]
    assert [line["event"] for line in logs] == ["batch_lost"]


async def test_a_fault_of_a_step_is_its_batchs_and_noted_down() -> None:
    driver, batch = _Driver(write=ZeroDivisionError()), _batch(num_tries=3)

    with capture_logs():
        await driver._step(batch)

    waits_for = {"code": "server_error", "message": "A step failed. It will be tried again."}
    rest = Rest(pause_s=8, num_tries=4, waits_for=waits_for)
    assert driver.calls == [("write", batch), ("release", batch, rest)]


async def test_a_step_in_an_outage_had_not_been_and_its_batch_is_released_when_it_is_over() -> None:
    batch = _batch(num_tries=3)
    driver = _Driver(write=OUTAGE, due=[], release=_Each(OUTAGE, None))
    same = Rest(pause_s=TURN_S, num_pauses=2, num_tries=3, waits_for=WAITS)

    with pytest.raises(OperationalError):
        await driver._step(batch)
    with pytest.raises(OperationalError):
        await driver.step()
    assert await driver.step() is False
    assert await driver.step() is False

    release = ("release", batch, same)
    assert driver.calls == [("write", batch), release, release, ("due", []), ("due", [])]


async def test_an_outage_at_the_end_of_a_step_loses_nothing_of_what_it_found() -> None:
    batch = _batch()
    driver = _Driver(write=1, left=RUNNING, due=[], release=_Each(OUTAGE, None))

    with pytest.raises(OperationalError):
        await driver._step(batch)
    await driver.step()

    released = [call for call in driver.calls if call[0] == "release"]
    assert released == [("release", batch, Rest(pause_s=0))] * 2


async def test_a_batch_whose_end_of_a_step_can_not_be_noted_is_left_to_its_lease() -> None:
    driver = _Driver(write=1, left=RUNNING, due=[], release=DataError("its row"))

    with capture_logs() as logs:
        await driver._step(_batch())
    await driver.step()

    assert driver.names == ["write", "left", "release", "due"]
    assert [line["event"] for line in logs] == ["batch_not_released"]


# What a step is.


@pytest.mark.parametrize("is_unfinished", [False, True])
@pytest.mark.parametrize("status", ["validating", "in_progress"])
async def test_a_file_is_read_before_lines_run_and_what_a_dead_driver_left_is_counted_first(
    status: str, is_unfinished: bool
) -> None:
    batch = _batch(status=status, is_unfinished=is_unfinished, num_tries=MAX_TRIES - 1)
    driver = _Driver(left=RUNNING, write=1)

    assert await driver._advance(batch) == Rest(pause_s=0)

    is_read = status == "validating"
    assert was_read == ([batch] if is_read else [])
    assert driver.calls == [
        *([("take_over", batch)] if is_unfinished else []),
        *([] if is_read else [("write", batch), ("left", BATCH)]),
    ]


@pytest.mark.parametrize(
    ("num_written", "num_submitted", "waits_for", "rest"),
    [
        (1, 0, None, Rest(pause_s=0)),
        (0, 1, WAITS, Rest(pause_s=0, waits_for=WAITS)),
        (0, 0, WAITS, Rest(pause_s=4 * FIRST_WAIT_S, num_pauses=3, waits_for=WAITS)),
        (0, 0, None, Rest(pause_s=4 * TURN_S, num_pauses=3)),
    ],
)
async def test_lines_are_written_and_submitted_and_a_step_that_did_either_is_not_rested_after(
    num_written: int, num_submitted: int, waits_for: dict[str, Any] | None, rest: Rest
) -> None:
    batch = _batch()
    driver = _Driver(write=num_written, left=PENDING, submit=(num_submitted, waits_for))

    assert await driver._advance(batch) == rest

    assert driver.calls == [("write", batch), ("left", BATCH), ("submit", batch, 7)]


async def test_while_all_lines_run_nothing_is_submitted() -> None:
    driver = _Driver(left=RUNNING)

    assert await driver._advance(_batch()) == Rest(pause_s=4 * TURN_S, num_pauses=3)
    assert driver.names == ["write", "left"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"status": "cancelling"}, "batch_cancelled"),
        ({"is_late": True}, "batch_expired"),
        ({"status": "cancelling", "is_late": True}, "batch_expired"),
    ],
)
@pytest.mark.parametrize(("num_refused", "running"), [(3, []), (0, [JOB, OTHER]), (0, [])])
async def test_a_batch_that_ends_early_refuses_its_lines_and_cancels_its_jobs(
    fields: dict[str, Any], code: str, num_refused: int, running: list[UUID]
) -> None:
    batch = _batch(**fields)
    driver = _Driver(refuse_pending=num_refused, running_jobs=running, left=PENDING)

    rest = await driver._advance(batch)

    assert driver.calls == [
        ("refuse_pending", BATCH, ended_error(code)),
        ("running_jobs", BATCH, CANCELS_A_STEP),
        ("write", batch),
        ("left", BATCH),
    ]
    assert cancelled == [(TENANT, job, "user") for job in running]
    is_busy = bool(num_refused or running)
    assert rest == (Rest(pause_s=0) if is_busy else Rest(pause_s=4 * TURN_S, num_pauses=3))


@pytest.mark.parametrize(
    ("num_submitted", "num_put_off", "num_running"),
    [(7, 0, 7), (WINDOW + 9, WINDOW, 9), (9 * WINDOW, 8 * WINDOW, 9 * WINDOW - MAX_PUT_OFF)],
)
async def test_lines_that_were_put_off_take_no_place_of_others_but_for_very_many(
    num_submitted: int, num_put_off: int, num_running: int
) -> None:
    batch = _batch()
    driver = _Driver(left=Left(num_submitted, 0, has_pending=True, num_put_off=num_put_off))

    await driver._advance(batch)

    assert driver.calls[-1] == ("submit", batch, num_running)


async def test_a_lease_is_renewed_while_a_step_lasts_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driving, "RENEW_S", 0.01)
    batch, enough = _batch(), threading.Event()
    driver = _Driver(left=RUNNING, renew=_Each(None, QueryCanceled(), None, *[None] * 999))

    def write(_row: dict[str, Any]) -> int:
        assert enough.wait(10)
        return 1

    async def call(function: Any, *arguments: Any, **named: Any) -> Any:
        if driver.names.count("renew") == 3:
            enough.set()
        return await _Driver._call(driver, function, *arguments, **named)

    monkeypatch.setattr(driver, "_call", call)
    monkeypatch.setattr(driver._writer, "write", write)
    with capture_logs() as logs:
        await driver._step(batch)

    assert [line["event"] for line in logs] == ["batch_not_renewed"]
    assert ("renew", batch) in driver.calls
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    await asyncio.gather(*others, return_exceptions=True)
    assert driver.names[-1] == "release"


async def test_a_step_that_hangs_is_renewed_for_a_while_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driving, "RENEW_S", 0.0)
    driver = _Driver()

    await driver._renew(_batch())

    assert driver.names == ["renew"] * MAX_RENEWALS


# How it ends.


@pytest.mark.parametrize(
    ("fields", "status"),
    [({}, "completed"), ({"is_late": True}, "expired"), ({"status": "cancelling"}, "cancelled")],
)
async def test_a_batch_of_which_nothing_is_left_ends_once_its_lines_are_forgotten(
    fields: dict[str, Any], status: str
) -> None:
    batch = _batch(**fields)
    driver = _Driver(refuse_pending=0, left=NOTHING, forget_lines=_Each(9, 0))

    with capture_logs() as logs:
        assert [await driver._advance(batch) for _ in range(2)] == [Rest(pause_s=0)] * 2

    ends = [call for call in driver.calls if call[0] in ("forget_lines", "end")]
    forget = ("forget_lines", BATCH)
    assert ends == [forget, forget, ("end", batch, status)]
    assert "submit" not in driver.names
    assert [(line["event"], line["status"]) for line in logs] == [("batch_ended", status)]


@pytest.mark.parametrize("num_tries", [MAX_TRIES, MAX_TRIES + 1])
async def test_a_batch_that_failed_too_often_is_given_up_once_nothing_of_it_runs(
    num_tries: int,
) -> None:
    batch = _batch(num_tries=num_tries, status="validating", is_unfinished=True)
    driver = _Driver(running_jobs=_Each([JOB], [], []), forget_lines=_Each(9, 0))

    with capture_logs() as logs:
        rests = [await driver._advance(batch) for _ in range(3)]

    same = Rest(pause_s=TURN_S, num_pauses=2, num_tries=num_tries, waits_for=WAITS)
    assert rests == [same, same, Rest(pause_s=0)]
    look, forget = ("running_jobs", BATCH, CANCELS_A_STEP), ("forget_lines", BATCH)
    message = "The batch failed again and again by no fault that has a name."
    mistake = {"code": InternalError().code, "message": message, "line": None, "param": None}
    assert driver.calls == [look, look, forget, look, forget, ("fail", batch, [mistake])]
    assert cancelled == [(TENANT, JOB, "user")]
    assert was_read == []
    assert [line["event"] for line in logs] == ["batch_given_up"]


@pytest.mark.parametrize("failing", ["running_jobs", "forget_lines"])
async def test_a_batch_ends_with_a_reason_though_what_is_left_of_it_can_not_be_cleared(
    failing: str,
) -> None:
    """First it is tried a few times more: what runs is to be cancelled."""
    driver = _Driver(**{"forget_lines": 0, failing: QueryCanceled()})

    for num_tries in (MAX_TRIES, MAX_TRIES + CLEARING_TRIES - 1):
        with pytest.raises(QueryCanceled):
            await driver._advance(_batch(num_tries=num_tries))
    assert "fail" not in driver.names
    rest = await driver._advance(_batch(num_tries=MAX_TRIES + CLEARING_TRIES))

    assert rest == Rest(pause_s=0)
    assert driver.names[-1] == "fail"


async def test_an_outage_is_no_reason_to_give_up_without_clearing() -> None:
    driver = _Driver(running_jobs=OUTAGE)

    with pytest.raises(OperationalError):
        await driver._advance(_batch(num_tries=MAX_TRIES + 9))

    assert driver.names == ["running_jobs"]


@pytest.mark.parametrize("running", [[JOB], [JOB, OTHER]])
async def test_if_no_job_can_be_cancelled_the_step_fails(
    monkeypatch: pytest.MonkeyPatch, running: list[UUID]
) -> None:
    async def cancel(_pool: Any, _tenant_id: UUID, job_id: UUID, *, by: str) -> None:
        asked.append(job_id)
        raise QueryCanceled

    asked: list[UUID] = []
    monkeypatch.setattr(driving, "request_cancel", cancel)

    with pytest.raises(QueryCanceled):
        await _Driver(running_jobs=running)._cancel_jobs(_batch())

    assert asked == running


@pytest.mark.parametrize("stuck", [JOB, OTHER])
async def test_a_job_that_can_not_be_cancelled_keeps_no_other_from_it(
    monkeypatch: pytest.MonkeyPatch, stuck: UUID
) -> None:
    async def cancel(_pool: Any, _tenant_id: UUID, job_id: UUID, *, by: str) -> None:
        asked.append(job_id)
        if job_id == stuck:
            raise QueryCanceled

    asked: list[UUID] = []
    monkeypatch.setattr(driving, "request_cancel", cancel)

    assert await _Driver(running_jobs=[JOB, OTHER])._cancel_jobs(_batch()) == 1
    assert asked == [JOB, OTHER]


async def test_no_more_is_cancelled_in_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    async def cancel(_pool: Any, _tenant_id: UUID, job_id: UUID, *, by: str) -> None:
        asked.append(job_id)
        raise OUTAGE

    asked: list[UUID] = []
    monkeypatch.setattr(driving, "request_cancel", cancel)

    with pytest.raises(OperationalError):
        await _Driver(running_jobs=[JOB, OTHER])._cancel_jobs(_batch())

    assert asked == [JOB]
