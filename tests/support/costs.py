"""What a call costs Postgres, in pages: the backend's own count, so that triggers, functions and
whatever plan the server chose are in it. Times depend on the machine, pages on rows and plans.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from store.pools import DictConnection

# Run by a session, makes its counts known.
FLUSH = "SELECT pg_stat_force_next_flush()"
_PAGES = """
SELECT coalesce(sum(hits) + sum(reads), 0)::bigint AS num
FROM pg_stat_get_backend_io(%s) WHERE object = 'relation'
"""


@dataclass(frozen=True, slots=True)
class Backend:
    """A session of Postgres, in no transaction, and how to run a statement on it."""

    pid: int
    execute: Callable[[str], object]


def backend_of(connection: DictConnection) -> Backend:
    """The session of a connection."""
    return Backend(
        connection.info.backend_pid, lambda statement: connection.execute(statement.encode())
    )


def pages_of(observer: DictConnection, backend: Backend, call: Callable[[], object]) -> int:
    """The pages that one call touches."""
    before = _flushed(observer, backend)
    call()
    return _flushed(observer, backend) - before


def num_pages(observer: DictConnection, pid: int) -> int:
    """What a session has touched up to its last flush."""
    row = observer.execute(_PAGES, (pid,)).fetchone()
    assert row is not None
    return int(row["num"])


def _flushed(observer: DictConnection, backend: Backend) -> int:
    backend.execute(FLUSH)
    return num_pages(observer, backend.pid)
