"""What a call costs Postgres, in pages: the backend's own count, so that triggers, functions and
whatever plan the server chose are in it. Times depend on the machine, pages on rows and plans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from store.pools import DictConnection

_FLUSH = "SELECT pg_stat_force_next_flush()"
_PAGES = """
SELECT coalesce(sum(hits) + sum(reads), 0)::bigint AS num
FROM pg_stat_get_backend_io(%s) WHERE object = 'relation'
"""


@dataclass
class Cost:
    """Of the calls in a `counting` block, known at its end."""

    num_pages: int = 0


@contextmanager
def counting(observer: DictConnection, connection: DictConnection) -> Iterator[Cost]:
    """Count the pages that `connection` touches; both are in no transaction."""
    before = _num_pages(observer, connection)
    cost = Cost()
    yield cost
    cost.num_pages = _num_pages(observer, connection) - before


def pages_of(
    observer: DictConnection, connection: DictConnection, call: Callable[[], object]
) -> int:
    """The pages of one call."""
    with counting(observer, connection) as cost:
        call()
    return cost.num_pages


def _num_pages(observer: DictConnection, connection: DictConnection) -> int:
    connection.execute(_FLUSH)
    row = observer.execute(_PAGES, (connection.info.backend_pid,)).fetchone()
    assert row is not None
    return int(row["num"])
