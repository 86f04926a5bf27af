"""Whose fault an exception is: that of the unit of work at hand, of the moment, or of Postgres.

A unit that keeps failing is set aside, or given up after some tries. An outage is waited for.
"""

from __future__ import annotations

from psycopg import DataError, Error, IntegrityError, InterfaceError, OperationalError

# SQLSTATEs: no connection, only a replica left, disk full, too many connections, shut down.
_OUTAGES = ("08", "25006", "53100", "53300", "57P")

# What the unit's own row or another's lock makes slow, or meets at a bad moment: the statement's
# time limit, a lock that wasn't got in time, a deadlock, a conflict of transactions, no memory.
_PASSING = ("57014", "55P03", "40", "53200")

# Values that fit no column, broken rules of a table, what functions and triggers raise, sizes, rows
# that can't be read.
_UNITS = ("21", "22", "23", "54", "P0", "XX")


def is_outage(error: BaseException) -> bool:
    """Whether Postgres was away or can take nothing.

    A statement that runs into its time limit, or out of memory, is the unit's: others get through.
    """
    if not isinstance(error, Error):
        return False
    if error.sqlstate is not None:
        return error.sqlstate.startswith(_OUTAGES)
    return isinstance(error, OperationalError | InterfaceError)


def is_units(error: Error) -> bool:
    """Whether it may lie in one of the units that were done at once. A schema that isn't migrated
    yet, or a right that is missing, is no unit's fault.
    """
    if error.sqlstate is not None:
        return error.sqlstate.startswith((*_UNITS, *_PASSING))
    return isinstance(error, DataError | IntegrityError)


def is_passing(error: Error) -> bool:
    """Whether the same may work another time. It is never what makes a loss of money final."""
    return (error.sqlstate or "").startswith(_PASSING)


def reason(error: Error) -> str:
    """What Postgres says of the rule that was broken; its details, which quote values, are left."""
    return f"{error.sqlstate} {error.diag.message_primary or type(error).__name__}"
