"""Whose fault an exception is: that of the unit of work at hand, or of Postgres.

A unit that keeps failing is given up after some tries. An outage is waited for.
"""

from __future__ import annotations

from psycopg import Error, InterfaceError, OperationalError

# SQLSTATEs: no connection, only a replica left, disk full, too many connections, shut down.
_OUTAGES = ("08", "25006", "53100", "53300", "57P")


def is_outage(error: BaseException) -> bool:
    """Whether Postgres was away or can take nothing.

    A statement that runs into its time limit, or out of memory, is the unit's: others get through.
    """
    if not isinstance(error, Error):
        return False
    if error.sqlstate is not None:
        return error.sqlstate.startswith(_OUTAGES)
    return isinstance(error, OperationalError | InterfaceError)
