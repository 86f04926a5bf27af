"""Which server a command talks to, and with which key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import pytest

from cli.client import connect
from cli.errors import CommandError
from cli.stack import state

OWN = "http://127.0.0.1:8000"


@dataclass
class Running:
    addresses: dict[str, str]


class Folder:
    """Of a `make up` on this machine."""

    @classmethod
    def default(cls) -> Self:
        return cls()

    def read_running(self) -> Running:
        return Running({"api": OWN})

    def find_secret(self, name: str) -> str:
        return f"own {name}"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "StateFolder", Folder)
    for name in ("MILLRACE_URL", "MILLRACE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("url", [None, OWN, f"{OWN}/"])
def test_the_own_server_gets_the_own_key(url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if url:
        monkeypatch.setenv("MILLRACE_URL", url)

    with connect() as client:
        assert client is not None


def test_another_server_never_gets_the_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_URL", "http://127.0.0.1:8001")

    with pytest.raises(CommandError, match="MILLRACE_API_KEY"):
        connect()


def test_a_key_of_its_own_goes_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_URL", "http://127.0.0.1:8001")
    monkeypatch.setenv("MILLRACE_API_KEY", "other")

    with connect() as client:
        assert client is not None
