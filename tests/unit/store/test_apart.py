"""Work that fails for all of its units at once is done for those that don't fail."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from psycopg import DataError, Error, IntegrityError, OperationalError
from psycopg.errors import (
    AdminShutdown,
    CardinalityViolation,
    ConnectionFailure,
    DataCorrupted,
    DeadlockDetected,
    DiskFull,
    InsufficientPrivilege,
    InternalError_,
    LockNotAvailable,
    NotNullViolation,
    OutOfMemory,
    ProgramLimitExceeded,
    QueryCanceled,
    RaiseException,
    SerializationFailure,
    TooManyConnections,
    UndefinedColumn,
)

from store.apart import apart, at_once_or_apart
from store.faults import reason


class _Work:
    """Fails where one of `bad` is among the units."""

    def __init__(self, *bad: int, error: type[Error] = DataError) -> None:
        self.calls: list[list[int]] = []
        self.aside: list[tuple[int, Error]] = []
        self.errors: list[Error] = []
        self._bad, self._error = bad, error

    def __call__(self, units: Sequence[int]) -> list[int]:
        self.calls.append(list(units))
        if set(self._bad) & set(units):
            self.errors.append(self._error())
            raise self.errors[-1]
        return list(units)

    def set_aside(self, unit: int, error: Error) -> None:
        self.aside.append((unit, error))


def test_nothing_is_no_work() -> None:
    work = _Work()

    assert apart([], work, work.set_aside) == []
    assert work.calls == []


def test_all_is_done_at_once_if_nothing_fails() -> None:
    work = _Work()

    assert apart([1, 2, 3], work, work.set_aside) == [[1, 2, 3]]
    assert work.aside == []


@pytest.mark.parametrize(
    "error",
    [
        DataError,
        IntegrityError,
        NotNullViolation,
        CardinalityViolation,
        RaiseException,
        DataCorrupted,
        InternalError_,
        ProgramLimitExceeded,
    ],
)
def test_halves_are_done_down_to_what_fails_alone(error: type[Error]) -> None:
    work = _Work(2, error=error)

    assert apart([1, 2, 3, 4, 5], work, work.set_aside) == [[1], [3, 4, 5]]

    assert work.calls == [[1, 2, 3, 4, 5], [1, 2], [1], [2], [3, 4, 5]]
    assert work.aside == [(2, work.errors[-1])]


def test_each_that_fails_alone_is_set_aside() -> None:
    work = _Work(1, 2)

    assert apart([1, 2], work, work.set_aside) == []
    assert [unit for unit, _ in work.aside] == [1, 2]


@pytest.mark.parametrize(
    "error",
    [QueryCanceled, LockNotAvailable, DeadlockDetected, SerializationFailure, OutOfMemory],
)
def test_what_took_too_long_or_met_another_is_found_by_few_statements(error: type[Error]) -> None:
    """Each of them takes seconds to fail. One of 500 is found by four."""
    work = _Work(300, error=error)

    done = apart(range(500), work, work.set_aside)

    assert sorted(unit for part in done for unit in part) == [*range(300), *range(301, 500)]
    assert work.aside == [(300, work.errors[-1])]
    assert len(work.errors) == 4


class _SlowWork(_Work):
    """Each statement that fails takes five seconds, each that doesn't one."""

    def __init__(self, *bad: int) -> None:
        super().__init__(*bad, error=QueryCanceled)
        self.now = 0.0

    def __call__(self, units: Sequence[int]) -> list[int]:
        self.now += 5.0
        done = super().__call__(units)
        self.now -= 4.0
        return done


def test_a_postgres_that_is_slow_as_a_whole_is_not_asked_for_each_unit() -> None:
    work = _SlowWork(*range(500))

    with pytest.raises(QueryCanceled):
        apart(range(500), work, work.set_aside, turn_s=30.0, clock=lambda: work.now)

    assert work.now == 30.0
    assert [unit for unit, _ in work.aside] == [0, 1, 2]  # others come first the next time


def test_what_is_done_when_the_turn_is_over_stays_done_and_the_rest_is_left() -> None:
    work = _SlowWork(*range(2, 500))

    done = apart(range(500), work, work.set_aside, turn_s=30.0, clock=lambda: work.now)

    assert done == [[0], [1]]
    assert [unit for unit, _ in work.aside] == [2, 3, 4]
    assert work.now == 32.0


def test_what_is_slow_as_all_of_it_together_is_done_in_parts() -> None:
    class TooMuch(_SlowWork):
        def __call__(self, units: Sequence[int]) -> list[int]:
            self._bad = tuple(units) if len(units) > 100 else ()
            return super().__call__(units)

    work = TooMuch()

    done = apart(range(500), work, work.set_aside, turn_s=30.0, clock=lambda: work.now)

    assert [unit for part in done for unit in part] == list(range(500))
    assert (len(work.errors), work.aside) == (1, [])


def test_a_statement_for_all_that_takes_the_whole_turn_is_the_only_one() -> None:
    work = _SlowWork(7)

    with pytest.raises(QueryCanceled):
        at_once_or_apart(
            lambda: work([7]),
            lambda: [7, 8],
            work,
            work.set_aside,
            turn_s=5.0,
            clock=lambda: work.now,
        )

    assert work.calls == [[7]]


@pytest.mark.parametrize(
    "error",
    [
        OperationalError,
        ConnectionFailure,
        AdminShutdown,
        DiskFull,
        TooManyConnections,
        UndefinedColumn,
        InsufficientPrivilege,
    ],
)
def test_what_is_no_units_fault_is_raised(error: type[Error]) -> None:
    work = _Work(2, error=error)

    with pytest.raises(error):
        apart([1, 2], work, work.set_aside)
    with pytest.raises(error):
        at_once_or_apart(lambda: work([2]), list, work, work.set_aside)

    assert (work.calls, work.aside) == ([[1, 2], [2]], [])


def test_one_statement_finds_and_does_it_all_unless_it_fails() -> None:
    work = _Work(2)

    assert at_once_or_apart(lambda: work([7]), list, work, work.set_aside) == [[7]]
    assert at_once_or_apart(lambda: work([2]), lambda: [1, 2], work, work.set_aside) == [[1]]

    assert work.calls == [[7], [2], [1, 2], [1], [2]]
    assert [unit for unit, _ in work.aside] == [2]


def test_a_rule_that_was_broken_has_a_name_even_without_a_message() -> None:
    assert reason(NotNullViolation()) == "23502 NotNullViolation"
