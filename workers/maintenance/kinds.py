"""A step of a loop looks after several kinds of things, each of which may fail as a whole: what is
to be done can't even be looked for, or none of it gets through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import structlog
from psycopg import Error as DatabaseError

from store.faults import is_outage, reason
from workers.maintenance import metrics

_Result = TypeVar("_Result")

log = structlog.get_logger(__name__)


def look_after(kind: str, work: Callable[[], _Result]) -> _Result | None:
    """One kind's boundary: whatever is wrong with it holds up no other kind, and it has its turn
    again in the next step. None if it failed. Raises in an outage, which is everybody's.
    """
    try:
        return work()
    except Exception as error:
        if is_outage(error):
            raise
        metrics.UNITS_FAILED.labels(kind).inc()
        if isinstance(error, DatabaseError):
            log.error("kind_failed", what=kind, error=reason(error))
        else:
            log.exception("kind_failed", what=kind)
        return None
