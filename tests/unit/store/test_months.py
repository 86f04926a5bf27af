"""How a month that others are reading is waited for."""

from __future__ import annotations

from typing import Any, cast

import pytest
from psycopg import OperationalError
from psycopg.errors import DependentObjectsStillExist, LockNotAvailable

from store import retention
from store.retention import MONTH_PAUSE_S, MONTH_PAUSES, Expired, drop_months


class _Connection:
    """Has months; each answers in turn: dropped or not, or an error."""

    def __init__(self, **months: list[bool | Exception]) -> None:
        self._months = months
        self._answer: bool = False

    def execute(self, query: str, parameters: tuple[Any, ...]) -> _Connection:
        if query == retention._DROP_MONTH:
            assert parameters[::2] == ("jobs", 60.0)
            answer = self._months[parameters[1]].pop(0)
            if isinstance(answer, Exception):
                raise answer
            self._answer = answer
        return self

    def fetchall(self) -> list[dict[str, str]]:
        return [{"month": month} for month in self._months]

    def fetchone(self) -> dict[str, bool]:
        return {"is_dropped": self._answer}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


def _drop(batch: int = 9, **months: list[bool | Exception]) -> Expired:
    connection = cast(Any, _Connection(**months))
    return drop_months(connection, batch=batch, parent="jobs", keep_s=60.0)


def test_a_month_is_tried_again_and_again_while_others_read_it(pauses: list[float]) -> None:
    assert _drop(a=[LockNotAvailable(), LockNotAvailable(), True], b=[True]) == Expired(2, [])
    assert pauses == [MONTH_PAUSE_S] * 2


def test_all_months_together_are_waited_for_a_few_times(pauses: list[float]) -> None:
    locked = LockNotAvailable()

    expired = _drop(a=[locked, locked, locked, True], b=[locked, locked], c=[locked], d=[True])

    assert pauses == [MONTH_PAUSE_S] * MONTH_PAUSES
    assert expired == Expired(2, ["b: 55P03 LockNotAvailable", "c: 55P03 LockNotAvailable"])


def test_a_month_that_is_not_over_is_no_failure_and_does_not_count(pauses: list[float]) -> None:
    assert _drop(batch=1, a=[False], b=[True], c=[True]) == Expired(1, [])
    assert pauses == []


def test_a_month_that_can_not_be_dropped_is_told_of_and_an_outage_is_raised() -> None:
    failures = ["a: 2BP01 DependentObjectsStillExist"]
    assert _drop(a=[DependentObjectsStillExist()], b=[True]) == Expired(1, failures)
    with pytest.raises(OperationalError):
        _drop(a=[OperationalError("the connection is lost")])
