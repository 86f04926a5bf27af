"""CSV for spreadsheets: who gets it, and what a cell may hold."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import Depends, Header, Query

CSV = "text/csv"

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


async def _wants_csv(
    format: Annotated[Literal["json", "csv"] | None, Query()] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> bool:
    """`format` decides; without it an `Accept` that names CSV and not JSON."""
    if format is not None:
        return format == "csv"
    types = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    return CSV in types and "application/json" not in types


WantsCsv = Annotated[bool, Depends(_wants_csv)]


def csv_headers(name: str) -> dict[str, str]:
    """Of an attachment with this name."""
    return {
        "Content-Type": f"{CSV}; charset=utf-8",
        "Content-Disposition": f'attachment; filename="{name}.csv"',
        "X-Content-Type-Options": "nosniff",
    }


def csv_lines(
    columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, has_head: bool = True
) -> bytes:
    """A line a row, behind one with the names of the columns. Null is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text)
    if has_head:
        writer.writerow(columns)
    writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    """What a spreadsheet would run as a formula is marked as text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    is_formula = isinstance(value, str) and value.startswith(_FORMULA_STARTS)
    return f"'{value}" if is_formula else value
