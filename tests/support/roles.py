"""Connections of each role to one database, closed at the end of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from cli.stack.database import DatabaseUrls
from store.pools import DictConnection, connect


@dataclass(frozen=True, slots=True)
class Connections:
    """One connection a role; autocommit."""

    owner: DictConnection
    api: DictConnection
    worker: DictConnection
    billing: DictConnection


@contextmanager
def connections(urls: DatabaseUrls) -> Iterator[Connections]:
    """Open all four."""
    with ExitStack() as stack:
        yield Connections(
            *(
                stack.enter_context(connect(url, application_name="test"))
                for url in (urls.owner, urls.api, urls.worker, urls.billing)
            )
        )
