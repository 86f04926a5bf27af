"""How long a batch rests after a step, and what its row says meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from api.schemas.chat import PATH as CHAT
from api.schemas.responses import PATH as RESPONSES
from store.batch_turns import Rest
from tasks.errors import (
    DeadlineExceeded,
    InsufficientQuota,
    InvalidRequest,
    JobCancelled,
    UnsupportedParameter,
)
from workers.batches.driver import Driver, _last_status
from workers.batches.endpoints import ENDPOINTS
from workers.batches.rests import (
    FIRST_WAIT_S,
    MAX_PAUSE_S,
    MAX_TRY_PAUSE_S,
    MAX_WAIT_S,
    PAST_WINDOW_S,
    TURN_S,
    after_failure,
    rest_of,
    same_again,
)
from workers.batches.showing import _failed_line, ended_error, request_error
from workers.batches.submitting import _waits_for

JOB_ID = UUID(int=7 << 76 | 2 << 62 | 0xABC)
WAITS = {"code": "insufficient_quota", "message": "No credit."}


def _batch(**fields: Any) -> dict[str, Any]:
    return {
        "id": JOB_ID,
        "status": "in_progress",
        "is_late": False,
        "remaining_s": 60.0,
        "num_pauses": 0,
        "num_tries": 0,
        "waits_for": None,
        **fields,
    }


def test_a_busy_batch_does_not_rest() -> None:
    rest = rest_of(_batch(num_pauses=5), is_busy=True, waits_for=WAITS)

    assert rest == Rest(pause_s=0, waits_for=WAITS)


@pytest.mark.parametrize(
    ("waits_for", "first_s", "longest_s"),
    [(None, TURN_S, MAX_PAUSE_S), (WAITS, FIRST_WAIT_S, MAX_WAIT_S)],
)
def test_a_batch_with_nothing_to_do_rests_ever_longer(
    waits_for: dict[str, Any] | None, first_s: float, longest_s: float
) -> None:
    rests = [
        rest_of(_batch(num_pauses=num), is_busy=False, waits_for=waits_for) for num in (0, 1, 50)
    ]

    assert [rest.pause_s for rest in rests] == [first_s, 2 * first_s, longest_s]
    assert [rest.num_pauses for rest in rests] == [1, 2, 51]
    assert {rest.num_tries for rest in rests} == {0}
    assert all(rest.waits_for == waits_for for rest in rests)


def test_a_step_that_failed_is_tried_again_ever_later() -> None:
    rests = [after_failure(_batch(num_tries=num), ZeroDivisionError()) for num in (0, 1, 2, 20)]

    assert [rest.pause_s for rest in rests] == [1, 2, 4, MAX_TRY_PAUSE_S]
    assert [rest.num_tries for rest in rests] == [1, 2, 3, 21]
    assert {str(rest.waits_for and rest.waits_for["code"]) for rest in rests} == {"server_error"}
    assert rests[0].num_pauses == 0


@pytest.mark.parametrize("remaining_s", [60.0, -PAST_WINDOW_S + 1])
def test_contents_that_are_away_are_waited_for_and_cost_no_try(remaining_s: float) -> None:
    rest = after_failure(_batch(num_tries=3, num_pauses=1, remaining_s=remaining_s), OSError())

    assert (rest.num_tries, rest.num_pauses, rest.pause_s) == (3, 2, 2 * FIRST_WAIT_S)
    assert rest.waits_for is not None
    assert rest.waits_for["code"] == "service_unavailable"


@pytest.mark.parametrize(
    ("error", "remaining_s", "code"),
    [
        (OSError(), -PAST_WINDOW_S - 1, "service_unavailable"),
        (FileNotFoundError(), 60.0, "server_error"),
    ],
)
def test_contents_that_will_not_come_are_not_waited_for(
    error: Exception, remaining_s: float, code: str
) -> None:
    rest = after_failure(_batch(num_tries=3, remaining_s=remaining_s), error)

    assert (rest.num_tries, rest.pause_s) == (4, 8)
    assert rest.waits_for is not None
    assert rest.waits_for["code"] == code


def test_a_step_that_had_not_been_leaves_all_as_it_was() -> None:
    batch = _batch(num_pauses=4, num_tries=2, waits_for=WAITS)

    assert same_again(batch) == Rest(pause_s=TURN_S, num_pauses=4, num_tries=2, waits_for=WAITS)


@pytest.mark.parametrize(
    ("status", "is_late", "last"),
    [
        ("in_progress", False, "completed"),
        ("in_progress", True, "expired"),
        ("cancelling", False, "cancelled"),
        ("cancelling", True, "cancelled"),
    ],
)
def test_how_a_batch_ends(status: str, is_late: bool, last: str) -> None:
    assert _last_status(_batch(status=status, is_late=is_late)) == last


def test_what_a_batch_waits_for_is_what_its_line_was_told() -> None:
    error = InsufficientQuota("No credit.")

    with capture_logs() as logs:
        assert [_waits_for(_batch(waits_for=waits), error) for waits in (None, WAITS)] == [
            WAITS
        ] * 2
    assert [line["event"] for line in logs] == ["batch_waits"]  # when it is new


# What lines may ask for, and what their error lines say.


@pytest.mark.parametrize(
    ("endpoint", "body", "param"),
    [
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": "x"}]}, "stream"),
        (RESPONSES, {"model": "m", "input": "x"}, "stream"),
        (RESPONSES, {"model": "m", "input": "x"}, "previous_response_id"),
    ],
)
def test_a_line_stands_alone(endpoint: str, body: dict[str, Any], param: str) -> None:
    value = True if param == "stream" else "resp_" + JOB_ID.hex

    assert ENDPOINTS[endpoint].generation(body).model == "m"
    with pytest.raises(UnsupportedParameter) as refused:
        ENDPOINTS[endpoint].generation(body | {param: value})
    assert refused.value.param == param


def test_a_line_that_is_answered_with_an_error() -> None:
    error = {"message": "Bad.", "type": "invalid_request_error", "param": "n", "code": None}
    refusal = InvalidRequest("Bad.", param="n")

    shown = request_error(refusal, JOB_ID)
    unmade = request_error(refusal)

    assert shown["response"]["body"]["error"] == error | {
        "code": shown["response"]["body"]["error"]["code"]
    }
    assert shown["response"]["status_code"] == unmade["response"]["status_code"] == 400
    assert shown["response"]["request_id"] == "job_" + JOB_ID.hex
    assert unmade["response"]["request_id"] is None
    assert shown["error"] is None


CANCELLED, LATE = JobCancelled(), DeadlineExceeded()


@pytest.mark.parametrize(
    ("status", "is_late", "failure", "code"),
    [
        ("in_progress", True, CANCELLED, "batch_expired"),
        ("cancelling", True, LATE, "batch_expired"),
        ("cancelling", False, CANCELLED, "batch_cancelled"),
        ("cancelling", False, LATE, None),
        ("in_progress", False, CANCELLED, None),
    ],
)
def test_whose_end_a_line_met(status: str, is_late: bool, failure: Any, code: str | None) -> None:
    shown = _failed_line(_batch(status=status, is_late=is_late), failure, JOB_ID)

    expected = request_error(failure, JOB_ID) if code is None else ended_error(code)
    assert shown == expected
    if code:
        assert (shown["response"], shown["error"]["code"]) == (None, code)
        assert shown["error"]["message"].startswith("The batch ")


@pytest.mark.parametrize(
    "steps", [[True, True, False, True], [True, True, RuntimeError("x"), True]]
)
async def test_a_driver_takes_one_batch_after_the_other_and_rests_when_none_can_be_taken(
    monkeypatch: pytest.MonkeyPatch, steps: list[bool | Exception]
) -> None:
    left = list(steps)

    async def step() -> bool:
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    driver = Driver.__new__(Driver)
    monkeypatch.setattr(driver, "step", step)
    monkeypatch.setattr("workers.batches.driver.TURN_S", 3_600)
    serving = asyncio.create_task(driver._serve())
    for _ in range(20):
        await asyncio.sleep(0)

    assert len(left) == 1
    serving.cancel()
