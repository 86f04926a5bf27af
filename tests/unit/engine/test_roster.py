"""Requests come in, and leave when they are aborted, late, or over."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.engine.requests import running_request
from workers.inference.engine.errors import EngineError
from workers.inference.engine.protocol import FinishReason
from workers.inference.engine.request import Request
from workers.inference.engine.roster import Roster


def choices(request_id: str = "a", n: int = 1, **fields: Any) -> list[Request]:
    return [running_request(request_id=request_id, n=n, index=i, **fields) for i in range(n)]


def test_request_joins_once() -> None:
    roster, added = Roster(), choices()
    roster.add(added)

    assert roster.changes(0) == (added, [])
    assert roster.changes(0) == ([], [])


def test_abort_right_after_submit_comes_in_the_same_snapshot() -> None:
    roster, added = Roster(), choices(n=2)
    roster.add(added)
    roster.abort("a")

    joined, leaving = roster.changes(0)

    assert joined == added
    assert leaving == [(choice, FinishReason.ABORT) for choice in added]


def test_who_has_to_leave_is_told_until_forgotten() -> None:
    roster, (request,) = Roster(), choices()
    roster.add([request])
    roster.abort("a")
    told = [len(roster.changes(0)[1]), len(roster.changes(0)[1])]

    roster.forget([request.finish(FinishReason.ABORT)])

    assert told == [1, 1]
    assert roster.changes(0) == ([], [])
    assert roster.is_empty


def test_deadlines_are_told_when_they_have_passed() -> None:
    roster = Roster()
    (early,), (late,), (free,) = choices("a", deadline=5), choices("b", deadline=9), choices("c")
    for request in (late, free, early):
        roster.add([request])

    leaving = [roster.changes(now)[1] for now in (4, 5)]
    roster.forget([early.finish(FinishReason.DEADLINE)])
    leaving += [roster.changes(now)[1] for now in (8, 9)]

    reason = FinishReason.DEADLINE
    assert leaving == [[], [(early, reason)], [], [(late, reason)]]


def test_id_is_free_again_when_the_last_choice_has_ended() -> None:
    roster, (first, second) = Roster(), choices(n=2)
    roster.add([first, second])

    roster.forget([first.finish(FinishReason.STOP)])
    with pytest.raises(EngineError) as refused:
        roster.add(choices())
    roster.forget([second.finish(FinishReason.STOP)])
    roster.add(choices())

    assert refused.value.code == "duplicate_request"
    assert roster.num_choices == 1


def test_closed_roster_accepts_nothing_and_keeps_what_is_there() -> None:
    roster, added = Roster(), choices()
    roster.add(added)
    roster.close()

    with pytest.raises(EngineError) as refused:
        roster.add(choices("b"))

    assert (refused.value.code, refused.value.retryable) == ("engine_unavailable", True)
    assert not roster.wait()
    assert roster.remaining() == added


def test_abort_of_an_unknown_request_is_ignored() -> None:
    roster = Roster()

    roster.abort("unknown")

    assert roster.changes(0.0) == ([], [])


def test_what_remains_after_a_fault_does_not_join_again() -> None:
    roster, request = Roster(), running_request()
    roster.add([request])

    remaining = roster.remaining()

    assert remaining == [request]
    assert roster.changes(0.0) == ([], [])
