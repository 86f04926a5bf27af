"""Every command answers every kind of misuse with one line and exit code 2, and does nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import Enum
from typing import Any

import pytest
import typer

from cli.main import app, run

Arguments = tuple[str, ...]


def _commands(group: Any, *names: str) -> Iterator[tuple[Arguments, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, *names, name)
        else:
            yield (*names, name), command


COMMANDS = dict(_commands(typer.main.get_command(app)))


def _needed(command: Any) -> list[Any]:
    return [each for each in command.params if each.required]


def _right(command: Any) -> Arguments:
    """What a command needs, well formed."""
    given: list[str] = []
    for parameter in _needed(command):
        is_option = parameter.param_type_name == "option"
        given += [parameter.opts[0], "1"] if is_option else ["1"]
    return tuple(given)


def _wrong_values(command: Any) -> Iterator[Arguments]:
    """Of each option that takes a number or a choice: one of no such kind, and beyond both ends."""
    for option in (each for each in command.params if each.param_type_name == "option"):
        kind = option.type_descriptor.annotation
        if issubclass(kind, Enum):
            yield (option.opts[0], "nonsense")
        if kind in (int, float):
            yield (option.opts[0], "many")
        for end, step in ((option.min, -1), (option.max, 1)):
            if end is not None:
                yield (option.opts[0], str(end + step))


def _misuses() -> Iterator[Arguments]:
    for names, command in COMMANDS.items():
        right = (*names, *_right(command))
        yield (*right, "--nonsense")
        if not any(parameter.nargs == -1 for parameter in command.params):
            yield (*right, *("x",) * (len(command.params) + 1))
        if _needed(command):
            yield names
        yield from ((*right, *wrong) for wrong in _wrong_values(command))


VALUES: list[Arguments] = [
    ("nonsense",),
    ("keys", "nonsense"),
    ("submit", "hi", "--tier", "nonsense"),
    ("submit", "hi", "--messages", "/nowhere.json"),
    ("submit", ""),
    ("estimate", ""),
    ("estimate", "hi", "--messages", "x"),
    ("chat", ""),
    ("up", "--dtype", "nonsense"),
    ("up", "--device", "nonsense"),
    ("up", "--device", "cuda:x"),
    ("up", "--device", "cpu:0"),
    ("up", "--device", ""),
    ("up", "--port", "http"),
    ("up", "--port", "65536"),
    ("up", "--engine", "nonsense"),
    ("batch", "run", "x.jsonl", "--window", "soon"),
    ("batch", "run", "x.jsonl", "--window", "8d"),
    ("batch", "run", "x.jsonl", "--endpoint", "/v1/nonsense"),
    ("files", "list", "--purpose", "nonsense"),
    ("files", "upload", "x", "--purpose", "batch_output"),
    ("keys", "create", "acme", "--scopes", "nonsense"),
    ("keys", "create", "acme", "--scopes", "jobs:read,"),
    ("keys", "create", "acme", "--days", "99999999999"),
    ("keys", "scopes", "id"),
    ("keys", "scopes", "id", "--scopes", ""),
    ("tenants", "create", ""),
    ("tenants", "create", "acme", "--credit", "much"),
    ("tenants", "create", "acme", "--credit", "0.0000001"),
    ("tenants", "create", "acme", "--requests-per-min", "0"),
    ("tenants", "set-limits", "acme"),
    ("credits", "add", "acme", "-5", "--reference", "r"),
    ("credits", "add", "acme", "nan", "--reference", "r"),
    ("credits", "add", "acme", "1e999999999", "--reference", "r"),
    ("credits", "add", "acme", "1e30", "--reference", "r"),
    ("credits", "add", "acme", "\udcff", "--reference", "r"),
]


@pytest.mark.parametrize("arguments", [*_misuses(), *VALUES], ids=" ".join)
def test_misuse_is_one_line_and_exits_with_2(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["millrace", *arguments])
    for name in ("MILLRACE_URL", "MILLRACE_API_KEY", "MILLRACE_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MILLRACE_STATE_DIR", "/nonexistent")
    monkeypatch.setenv("MILLRACE_KEY_PEPPER", "pepper")

    with pytest.raises(SystemExit) as exit_:
        run()

    said = capsys.readouterr()
    assert (exit_.value.code, said.out) == (2, ""), said.err
    assert len(said.err.strip().splitlines()) == 1
