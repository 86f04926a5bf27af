"""Work that fails for all of its units at once is done for those that don't fail."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from psycopg import DataError, Error, IntegrityError, OperationalError
from psycopg.errors import (
    DataCorrupted,
    LockNotAvailable,
    NotNullViolation,
    RaiseException,
    UndefinedColumn,
)

from store.apart import apart, at_once_or_apart, reason


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
    "error", [DataError, IntegrityError, NotNullViolation, RaiseException, DataCorrupted]
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


@pytest.mark.parametrize("error", [OperationalError, LockNotAvailable, UndefinedColumn])
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
