"""What tests of stored things begin with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cli.stack.database import DatabaseUrls
from tests.support.roles import Connections, connections
from tests.support.rows import Rows


@pytest.fixture
def roles(database: DatabaseUrls) -> Iterator[Connections]:
    """A connection of each role to a database of the test's own."""
    with connections(database) as opened:
        yield opened


@pytest.fixture
def rows(roles: Connections) -> Rows:
    """Writes rows as the owner."""
    return Rows(roles.owner)
