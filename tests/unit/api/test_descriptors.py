from __future__ import annotations

import subprocess
import sys

import pytest

from api.server import descriptors
from api.server.descriptors import RESERVED, TooFewDescriptors, max_connections


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(descriptors, "raise_limit", lambda: 4_096)
    return 4_096


def test_limit_of_open_files_decides_where_nobody_asks(limit: int) -> None:
    assert max_connections(None, spare=100) == limit - RESERVED - 100


def test_number_that_fits_is_taken_and_no_other(limit: int) -> None:
    room = limit - RESERVED - 100
    assert max_connections(room, spare=100) == room
    with pytest.raises(TooFewDescriptors, match=str(limit + 1)):
        max_connections(room + 1, spare=100)


def test_too_low_a_limit_is_refused_where_nobody_asks_too(limit: int) -> None:
    with pytest.raises(TooFewDescriptors):
        max_connections(None, spare=limit - RESERVED - descriptors.MIN_CONNECTIONS + 1)


def test_large_limit_brings_no_more_than_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "raise_limit", lambda: 1 << 20)
    assert max_connections(None, spare=100) == descriptors.DEFAULT_MAX_CONNECTIONS


def test_soft_limit_is_raised_to_the_hard_one() -> None:
    program = (
        "import resource; from api.server.descriptors import raise_limit;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (700, 900));"
        "print(raise_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["900", "900", "900"]


def test_process_that_can_not_carry_them_says_so_in_one_line() -> None:
    program = (
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, (700, 700));"
        "runpy.run_module('api.server', run_name='__main__')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert len(ran.stderr.splitlines()) == 1
    assert "ulimit -n" in ran.stderr
