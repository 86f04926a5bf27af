"""Fixtures of all tests: real Postgres and Redis, started once a session, a database a test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before anything imports Triton: without a GPU its kernels are interpreted.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
from hypothesis import settings

from cli.stack.database import DatabaseUrls
from tests.support.services import Services

# A busy machine is no fault, and the same tree passes or fails the same everywhere.
settings.register_profile("millrace", deadline=None, derandomize=True)
settings.load_profile("millrace")


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    """Or those of another process, such as `make mutants`, which runs the suite many times."""
    lent = os.environ.get("MILLRACE_TEST_SERVICES")
    with Services(Path(lent) if lent else None, is_borrowed=lent is not None) as started:
        yield started


@pytest.fixture
def database(services: Services) -> Iterator[DatabaseUrls]:
    """A migrated database that nobody else sees."""
    urls = services.fresh_database()
    yield urls
    services.drop_database(urls)
