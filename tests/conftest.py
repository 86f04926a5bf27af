"""Fixtures of all tests: real Postgres and Redis, started once a session, a database a test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# Before anything imports Triton: without a GPU its kernels are interpreted.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Several processes run tests side by side: more threads of each would only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("RAYON_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from cli.stack.database import DatabaseUrls
from tests.support.certificates import one_certificate
from tests.support.services import Services, use_memory
from tests.support.warm import end_warm_processes, use_warm_processes

# A busy machine is no fault, and the same tree passes or fails the same everywhere.
settings.register_profile("millrace", deadline=None, derandomize=True)
settings.load_profile("millrace")

_exit = ExitStack()


def pytest_configure() -> None:
    use_memory()
    use_warm_processes()
    _exit.callback(end_warm_processes)
    _exit.enter_context(one_certificate())


def pytest_unconfigure() -> None:
    _exit.close()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Imported here: the environment of `make test-compat` has no xdist."""
    from tests.support.side_by_side import UnitScheduling  # noqa: PLC0415

    return UnitScheduling(config, log)


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
