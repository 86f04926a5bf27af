from __future__ import annotations

from collections.abc import Iterator

import pytest

from cli.stack.database import DatabaseUrls
from tests.support.roles import Connections, connections
from tests.support.rows import Rows


@pytest.fixture
def roles(database: DatabaseUrls) -> Iterator[Connections]:
    with connections(database) as opened:
        yield opened


@pytest.fixture
def rows(roles: Connections) -> Rows:
    return Rows(roles.owner)
