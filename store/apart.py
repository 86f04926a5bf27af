"""One unit of work that can't be done holds up none of those done with it in one statement.

Only errors that lie in the unit count: values that fit no column or break a rule of a table, what a
trigger refuses, a row that can't be read. An outage, a lock, or a schema that isn't migrated yet is
no unit's fault, and is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from psycopg import DataError, Error, IntegrityError
from psycopg.errors import DataCorrupted, RaiseException

UNITS_FAULT = (DataError, IntegrityError, RaiseException, DataCorrupted)

_Unit = TypeVar("_Unit")
_Result = TypeVar("_Result")


def at_once_or_apart(
    at_once: Callable[[], _Result],
    waiting: Callable[[], Sequence[_Unit]],
    work: Callable[[Sequence[_Unit]], _Result],
    set_aside: Callable[[_Unit, Error], None],
) -> list[_Result]:
    """Do what waits in one statement that finds it itself; if that fails, find it first and do it
    apart.
    """
    try:
        return [at_once()]
    except UNITS_FAULT:
        return apart(waiting(), work, set_aside)


def apart(
    units: Sequence[_Unit],
    work: Callable[[Sequence[_Unit]], _Result],
    set_aside: Callable[[_Unit, Error], None],
) -> list[_Result]:
    """Do the work for all units; if that fails, for each half of them, down to those that fail
    alone: they are set aside. Each call of `work` is a transaction of its own.
    """
    if not units:
        return []
    try:
        return [work(units)]
    except UNITS_FAULT as error:
        if len(units) == 1:
            set_aside(units[0], error)
            return []
    middle = len(units) // 2
    return apart(units[:middle], work, set_aside) + apart(units[middle:], work, set_aside)


def reason(error: Error) -> str:
    """What Postgres says of the rule that was broken; its details, which quote values, are left."""
    return f"{error.sqlstate} {error.diag.message_primary or type(error).__name__}"
