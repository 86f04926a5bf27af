"""One unit of work that can't be done holds up none of those done with it in one statement.

Only errors that may lie in the unit count (`store/faults.py`): an outage, or a schema that isn't
migrated yet, is raised.

A unit may also take too long, since its row is large or another transaction has it locked. Each
statement that runs into its time limit takes seconds, and so does each one of a Postgres that is
slow as a whole. So a call ends after a while. What was done by then stays done, what is left is
found again by the next call; if nothing at all got through, the last error is raised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from psycopg import Error

from store.faults import is_passing, is_units

# And one more statement. Enough to find one unit among 2,000 by five statements of 5 s.
TURN_S = 30.0

# Halves find a unit by the fewest statements. By time-outs, which cost more, eighths do.
_HALVES, _EIGHTHS = 2, 8

_Unit = TypeVar("_Unit")
_Result = TypeVar("_Result")


def at_once_or_apart(
    at_once: Callable[[], _Result],
    waiting: Callable[[], Sequence[_Unit]],
    work: Callable[[Sequence[_Unit]], _Result],
    set_aside: Callable[[_Unit, Error], None],
    *,
    turn_s: float = TURN_S,
    clock: Callable[[], float] = time.monotonic,
) -> list[_Result]:
    """Do what waits in one statement that finds it itself; if that fails, find it first and do it
    apart.
    """
    began = clock()
    try:
        return [at_once()]
    except Error as error:
        left_s = began + turn_s - clock()
        if not is_units(error) or left_s <= 0:
            raise
    return apart(waiting(), work, set_aside, turn_s=left_s, clock=clock)


def apart(
    units: Sequence[_Unit],
    work: Callable[[Sequence[_Unit]], _Result],
    set_aside: Callable[[_Unit, Error], None],
    *,
    turn_s: float = TURN_S,
    clock: Callable[[], float] = time.monotonic,
) -> list[_Result]:
    """Do the work for all units; if that fails, for parts of them, down to those that fail alone:
    they are set aside. Each call of `work` is a transaction of its own.
    """
    give_up_at = clock() + turn_s
    done: list[_Result] = []
    left = [units] if units else []
    while left:
        some = left.pop()
        try:
            done.append(work(some))
        except Error as error:
            if not is_units(error):
                raise
            if len(some) == 1:
                set_aside(some[0], error)
            else:
                left += reversed(_parts(some, _EIGHTHS if is_passing(error) else _HALVES))
            if left and not done and clock() >= give_up_at:
                raise
        if clock() >= give_up_at:
            break
    return done


def _parts(units: Sequence[_Unit], num: int) -> list[Sequence[_Unit]]:
    """In their order, none of them empty."""
    num, size = min(num, len(units)), len(units)
    return [units[size * i // num : size * (i + 1) // num] for i in range(num)]
