"""A test that asserts nothing passes whatever the code does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]

# What raises by itself: pytest.raises, torch's assert_close, checks of ours that a good value
# passes, and a test of a library's suite that is run through `super()`.
ASSERTING = ("raises", "warns", "fail", "assert_", "check_", "test_")

MAX_DEPTH = 4  # of helpers that call helpers


@dataclass(frozen=True, slots=True)
class Function:
    """What a function of the tests does for itself, and what it calls."""

    file: str
    name: str
    asserts: bool
    calls: frozenset[str]


def _functions() -> Iterator[Function]:
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield _function(path.relative_to(TESTS).as_posix(), node)


def _function(file: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Function:
    parts = list(ast.walk(node))
    calls = frozenset(
        part.func.attr if isinstance(part.func, ast.Attribute) else part.func.id
        for part in parts
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute | ast.Name)
    )
    asserts = any(isinstance(part, ast.Assert | ast.Raise) for part in parts)
    is_skipped = any("mark.skip(" in ast.unparse(decorator) for decorator in node.decorator_list)
    asserts = asserts or is_skipped or any(map(_is_asserting, calls))
    return Function(file, node.name, asserts, calls)


def _asserts(function: Function, helpers: set[str]) -> bool:
    return function.asserts or bool(function.calls & helpers)


def _is_asserting(name: str) -> bool:
    return name.startswith(ASSERTING)


def test_every_test_asserts_something() -> None:
    functions = list(_functions())
    helpers: set[str] = set()
    for _ in range(MAX_DEPTH):
        helpers = {function.name for function in functions if _asserts(function, helpers)}

    silent = [f for f in functions if f.name.startswith("test_") and not _asserts(f, helpers)]

    assert [f"{f.file}::{f.name}" for f in silent] == []
