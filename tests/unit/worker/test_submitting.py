"""How many lines of a batch a step submits, and what becomes of those that get no job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast
from uuid import UUID

import orjson
import pytest
from psycopg import OperationalError
from structlog.testing import capture_logs

from api.admission import Submission
from api.schemas.chat import PATH as CHAT
from store import batch_driving
from store.admission import Admitted, LineNotPending
from store.tenants import ApiKey
from tasks.errors import (
    InsufficientQuota,
    InternalError,
    InvalidApiKey,
    InvalidRequest,
    RateLimitExceeded,
)
from tasks.jobs import OnDisconnect
from tests.support.caller import new_caller
from workers.batches import submitting
from workers.batches.rests import MAX_LINE_TRIES, MAX_RETRY_S
from workers.batches.showing import request_error
from workers.batches.submitting import (
    MIN_DEADLINE_S,
    STEP_BYTES,
    STEP_LINES,
    WINDOW,
    LineSubmitter,
)

BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}], "unknown": 1}


def _line(number: int, *, num_tries: int = 0) -> dict[str, Any]:
    return {"number": number, "body": orjson.dumps(BODY), "num_tries": num_tries}


class _Submitter(LineSubmitter):
    """Has these lines; `answer` is what comes of a line, by its number."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        super().__init__(cast(Any, None), cast(Any, None), cast(Any, _Admission(self)))
        self.lines = lines
        self.calls: list[tuple[Any, ...]] = []
        self.asked: list[dict[str, Any]] = []
        self.submissions: list[Submission] = []
        self.answer: Callable[[int], Exception | None] = lambda _number: None
        self.is_new = True

    async def _call(self, function: Any, *arguments: Any, **named: Any) -> Any:
        if function is batch_driving.pending_lines:
            self.asked.append(named)
            return self.lines[: named["limit"]]
        self.calls.append((function.__name__, *arguments[1:], *named.values()))
        return None


class _Admission:
    def __init__(self, submitter: _Submitter) -> None:
        self._of = submitter

    async def submit(self, submission: Submission) -> Admitted:
        self._of.submissions.append(submission)
        if error := self._of.answer(len(self._of.submissions)):
            raise error
        return Admitted(JOB, row={} if self._of.is_new else None)


JOB = UUID(int=7 << 76 | 2 << 62 | 0xABC)
WAITS = {"code": "service_unavailable", "message": "Wait."}


def _batch(**fields: Any) -> dict[str, Any]:
    return {
        "id": JOB,
        "api_key_id": "key",
        "endpoint": CHAT,
        "service_tier": "batch",
        "remaining_s": 500.0,
        "num_pauses": 0,
        "waits_for": None,
        **fields,
    }


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> list[ApiKey | None]:
    """The one key there is."""
    found: list[ApiKey | None] = [new_caller()]

    async def find(_pool: Any, key_id: str) -> ApiKey | None:
        assert key_id == "key"
        return found[0]

    monkeypatch.setattr(submitting, "find_api_key", find)
    return found


pytestmark = pytest.mark.usefixtures("keys")


@pytest.mark.parametrize(
    ("num_running", "num_pauses", "waits_for", "num"),
    [
        (0, 0, None, STEP_LINES),
        (WINDOW - 3, 0, None, 3),
        (WINDOW - 1, 0, None, 1),
        (WINDOW, 0, None, 0),
        (WINDOW + 1, 0, None, 0),
        (0, 1, None, STEP_LINES),
        (0, 0, WAITS, STEP_LINES),
        (0, 1, WAITS, 1),  # one tells whether it still waits
    ],
)
async def test_how_many_lines_a_step_submits(
    num_running: int, num_pauses: int, waits_for: dict[str, Any] | None, num: int
) -> None:
    submitter = _Submitter([_line(number) for number in range(1, STEP_LINES + 9)])
    batch = _batch(num_pauses=num_pauses, waits_for=waits_for)

    assert await submitter.submit(batch, num_running) == (num, None)
    assert len(submitter.submissions) == num
    asked = [{"limit": num, "max_bytes": STEP_BYTES}]
    assert submitter.asked == (asked if num else [])


async def test_what_a_batch_waits_for_stays_while_all_its_lines_are_put_off() -> None:
    assert await _Submitter([]).submit(_batch(waits_for=WAITS), 0) == (0, WAITS)


async def test_a_line_goes_the_way_of_a_request(keys: list[ApiKey | None]) -> None:
    submitter = _Submitter([_line(7)])

    await submitter.submit(_batch(), 0)

    [submission] = submitter.submissions
    generation = submission.generation
    assert submission.key is keys[0]
    assert submission.idempotency_key == batch_driving.line_key(JOB, 7)
    assert (submission.batch_id, submission.is_retry) == (JOB, False)
    assert submission.known == {"model": "m", "messages": BODY["messages"]}
    assert (generation.service_tier, generation.deadline_s) == ("batch", 500.0)
    assert not generation.is_background
    assert generation.on_disconnect == OnDisconnect.CONTINUE
    assert submitter.calls == []  # the statement that makes the job notes it down


async def test_a_line_of_a_batch_that_is_late_has_a_moment_all_the_same() -> None:
    submitter = _Submitter([_line(1)])

    await submitter.submit(_batch(remaining_s=-5.0), 0)

    assert submitter.submissions[0].generation.deadline_s == MIN_DEADLINE_S


async def test_a_job_that_was_there_is_noted_down() -> None:
    submitter = _Submitter([_line(1)])
    submitter.is_new = False

    assert await submitter.submit(_batch(), 0) == (1, None)
    assert submitter.calls == [("note_submitted", 1, JOB)]


@pytest.mark.parametrize("key", [None, new_caller(is_live=False)])
async def test_without_a_live_key_no_line_gets_a_job(
    keys: list[ApiKey | None], key: ApiKey | None
) -> None:
    keys[0] = key
    submitter = _Submitter([_line(1), _line(2)])

    assert await submitter.submit(_batch(), 0) == (2, None)
    refusal = request_error(InvalidApiKey("The API key of the batch is not valid any more."))
    assert submitter.calls == [("note_refused", number, refusal) for number in (1, 2)]
    assert submitter.submissions == []


async def test_a_fault_of_the_line_is_its_refusal_and_the_others_go_on() -> None:
    submitter = _Submitter([_line(1), _line(2)])
    error = InvalidRequest("Bad.")
    submitter.answer = lambda number: error if number == 1 else None

    assert await submitter.submit(_batch(), 0) == (2, None)
    assert submitter.calls == [("note_refused", 1, request_error(error))]


async def test_without_credit_nothing_more_is_tried() -> None:
    submitter = _Submitter([_line(1), _line(2), _line(3)])
    submitter.answer = lambda number: InsufficientQuota("No credit.") if number == 2 else None

    waits_for = {"code": "insufficient_quota", "message": "No credit."}
    assert await submitter.submit(_batch(), 0) == (1, waits_for)
    assert (len(submitter.submissions), submitter.calls) == (2, [])


async def test_what_may_pass_is_tried_again_ever_later_and_in_the_end_refused() -> None:
    tries = (0, 1, 2, 10, MAX_LINE_TRIES - 2, MAX_LINE_TRIES - 1)
    submitter = _Submitter([_line(number, num_tries=num) for number, num in enumerate(tries)])
    error = RateLimitExceeded("Too many.")
    submitter.answer = lambda _number: error

    num_done, waits_for = await submitter.submit(_batch(), 0)

    assert (num_done, waits_for) == (0, {"code": error.code, "message": "Too many."})
    assert submitter.calls == [
        ("postpone_line", 0, 1.0),
        ("postpone_line", 1, 2.0),
        ("postpone_line", 2, 4.0),
        ("postpone_line", 3, MAX_RETRY_S),
        ("postpone_line", 4, MAX_RETRY_S),
        ("note_refused", 5, request_error(error)),
    ]


async def test_a_fault_without_a_name_is_put_off_and_the_others_go_on() -> None:
    submitter = _Submitter([_line(1), _line(2), _line(3, num_tries=MAX_LINE_TRIES)])
    submitter.answer = lambda number: None if number == 2 else ZeroDivisionError()

    with capture_logs():  # tracebacks take long to print
        assert await submitter.submit(_batch(), 0) == (3, None)
    assert submitter.calls == [
        ("postpone_line", 1, 1.0),
        ("note_refused", 3, request_error(InternalError())),
    ]


async def test_a_line_that_somebody_else_was_faster_with_is_done() -> None:
    submitter = _Submitter([_line(1)])
    submitter.answer = lambda _number: LineNotPending()

    assert await submitter.submit(_batch(), 0) == (1, None)
    assert submitter.calls == []


async def test_an_outage_ends_the_step() -> None:
    submitter = _Submitter([_line(1), _line(2)])
    submitter.answer = lambda _number: OperationalError()

    with pytest.raises(OperationalError):
        await submitter.submit(_batch(), 0)

    assert (len(submitter.submissions), submitter.calls) == (1, [])


async def test_a_step_ends_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitting, "STEP_S", -1.0)
    submitter = _Submitter([_line(1), _line(2)])

    assert await submitter.submit(_batch(), 0) == (1, None)
