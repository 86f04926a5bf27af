"""What commands print: JSON for programs, tables for people."""

# ruff: noqa: PLC0415 (a command imports what it needs when it runs, so that `--help` is instant)

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_PIPE_WIDTH = 500  # a pipe gets whole lines, however narrow the terminal behind it


def print_json(value: Any) -> None:
    """One value on one line, so that lists of them are JSON lines."""
    print(json.dumps(value, ensure_ascii=False, default=str), flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Numbers are aligned to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    lines = [tuple(row) for row in rows]
    for index, name in enumerate(columns):
        is_number = any(isinstance(line[index], int) for line in lines)
        table.add_column(name, justify="right" if is_number else "left")
    for line in lines:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in line))
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)


def moment(unix_seconds: int | None) -> str:
    """A time for people."""
    if unix_seconds is None:
        return ""
    return f"{datetime.fromtimestamp(unix_seconds, UTC):%Y-%m-%d %H:%M:%S}"
