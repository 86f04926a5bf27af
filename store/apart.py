"""One unit of work that can't be done holds up none of those done with it in one statement.

Only errors that lie in the unit count: values that fit no column or break a rule of a table. An
outage, a lock, or a schema that isn't migrated yet is no unit's fault, and is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from psycopg import DataError, Error, IntegrityError

UNITS_FAULT = (DataError, IntegrityError)

_Unit = TypeVar("_Unit")
_Result = TypeVar("_Result")


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
