"""Mistakes in Python: found by the syntax tree, made in the text.

What carries no promise is left alone: annotations, decorators, assertions, messages, logging and
metrics, and numbers at the top level of a module, which are settings.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import accumulate

from tests.mutants.mutant import REVERSED, Mutant

_COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
_MOMENT = re.compile(r"\b(now|until|since|give_up)\b|monotonic\(\)|clock\(\)|_at\b")
_ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "//"),
    ast.FloorDiv: ("//", "*"),
}
_OBSERVING = ("log.", "metrics.", "structlog.", "configure_logs(", "warnings.")
_NOTHING = ("None", "False")
# How a thread ends with its process; of zip, an assertion.
_SETTINGS = ("daemon", "strict")
_MAX_NUMBER = 2  # an offset or a bound; larger numbers are settings


class PythonMutants:
    """All mutants of one file."""

    def __init__(self, path: str, source: str) -> None:
        self._path = path
        self._source = source
        # The tree counts columns in UTF-8.
        self._lines = [line.encode() for line in source.splitlines(keepends=True)]
        self._starts = [0, *accumulate(len(line.decode()) for line in self._lines)]
        self._found: list[Mutant] = []

    def all(self) -> list[Mutant]:
        self._visit(ast.parse(self._source), in_function=False)
        return [mutant for mutant in self._found if self._changes_code(mutant)]

    def _visit(self, node: ast.AST, *, in_function: bool) -> None:
        if self._is_left_alone(node):
            return
        for method in (self._operators, self._conditions, self._statements):
            method(node)
        if in_function:
            self._values(node)
        for child in _children(node):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            self._visit(child, in_function=in_function or is_function)

    def _is_left_alone(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Assert | ast.Import | ast.ImportFrom | ast.JoinedStr):
            return True
        if isinstance(node, ast.keyword) and node.arg in _SETTINGS:
            return True
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return True
        return isinstance(node, ast.Expr | ast.With) and self._text(node).startswith(_OBSERVING)

    def _operators(self, node: ast.AST) -> None:
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                self._between(left, right, _COMPARISONS.get(type(op)), "comparison")
            case ast.BinOp(left=left, op=op, right=right) if not _is_text(left, right):
                self._between(left, right, _ARITHMETIC.get(type(op)), "arithmetic")
            case ast.AugAssign(target=target, op=op, value=value):
                signs = _ARITHMETIC.get(type(op))
                if signs:
                    self._between(target, value, (f"{signs[0]}=", f"{signs[1]}="), "arithmetic")
            case ast.BoolOp(op=op, values=values):
                words = ("and", "or") if isinstance(op, ast.And) else ("or", "and")
                self._between(values[0], values[1], words, "and/or")
                for position, value in enumerate(values):
                    neighbour = values[position - 1] if position else values[1]
                    self._drop_operand(value, neighbour, is_first=position == 0)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self._replace(node, f"({self._text(operand)})", "not dropped")

    def _conditions(self, node: ast.AST) -> None:
        match node:
            case ast.If(test=test) | ast.IfExp(test=test):
                for word in ("True", "False"):
                    self._replace(test, word, "condition")
            case ast.While(test=test) if not isinstance(test, ast.Constant):
                self._replace(test, "False", "condition")
            case ast.comprehension(ifs=[*tests]):
                for test in tests:
                    self._replace(test, "True", "condition")

    def _statements(self, node: ast.AST) -> None:
        match node:
            case ast.Expr(value=ast.Call() | ast.Await()) | ast.AugAssign() | ast.Raise():
                self._replace(node, "pass", "statement dropped")
            case ast.Delete(targets=[ast.Name()]):
                pass  # says that nobody needs it
            case ast.Delete() | ast.Break() | ast.Continue():
                self._replace(node, "pass", "statement dropped")
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                self._replace(node, "pass", "statement dropped")
            # None counts as False; that one becomes True, as every constant does.
            case ast.Return(value=ast.expr() as value) if ast.unparse(value) not in _NOTHING:
                self._replace(value, "None", "return None")
            case ast.Return(value=None):
                self._replace(node, "pass", "statement dropped")

    def _values(self, node: ast.AST) -> None:
        match node:
            case ast.Constant(value=bool(value)):
                self._replace(node, str(not value), "constant")
            case ast.Constant(value=int(value)) if value <= _MAX_NUMBER:
                self._replace(node, str(value + 1), "constant")
            case ast.Slice(upper=ast.expr() as upper):
                self._replace(upper, "", "slice")

    def _drop_operand(self, value: ast.expr, neighbour: ast.expr, *, is_first: bool) -> None:
        """With the operator towards its neighbour."""
        start, end = self._span(value)
        other_start, other_end = self._span(neighbour)
        span = (start, other_start) if is_first else (other_end, end)
        # Parentheses around an operand are not in its span: dropping would leave half of them.
        dropped = self._source[slice(*span)]
        if dropped.count("(") == dropped.count(")") and ")" not in dropped.split("(")[0]:
            self._add(*span, "" if is_first else " ", "operand dropped")

    def _between(
        self, left: ast.expr, right: ast.expr, words: tuple[str, str] | None, kind: str
    ) -> None:
        """Replace the operator between two operands."""
        if words is None:
            return
        begin, end = self._span(left)[1], self._span(right)[0]
        old, new = words
        if old in REVERSED and _MOMENT.search(f"{self._text(left)} {self._text(right)}"):
            new = REVERSED[old]
        at = self._source[begin:end].find(old)
        if at >= 0:
            self._add(begin + at, begin + at + len(old), new, kind)

    def _replace(self, node: ast.AST, text: str, kind: str) -> None:
        self._add(*self._span(node), text, kind)

    def _add(self, start: int, end: int, text: str, kind: str) -> None:
        line = self._source.count("\n", 0, start) + 1
        self._found.append(Mutant(self._path, start, end, text, kind, line))

    def _changes_code(self, mutant: Mutant) -> bool:
        try:
            changed = ast.parse(mutant.applied_to(self._source))
        except SyntaxError:
            return False
        return ast.dump(changed) != ast.dump(ast.parse(self._source))

    def _span(self, node: ast.AST) -> tuple[int, int]:
        assert isinstance(node, ast.expr | ast.stmt)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (
            self._offset(node.lineno, node.col_offset),
            self._offset(node.end_lineno, node.end_col_offset),
        )

    def _offset(self, line: int, column: int) -> int:
        return self._starts[line - 1] + len(self._lines[line - 1][:column].decode())

    def _text(self, node: ast.AST) -> str:
        return self._source[slice(*self._span(node))]


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """Those that run: no annotations, no decorators, no bases."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases", "keywords") and (
            not isinstance(node, ast.Call)
        ):
            continue
        if isinstance(node, ast.Raise) and name == "exc" and isinstance(value, ast.Call):
            continue  # messages; that it is raised is what counts
        yield from (item for item in _as_list(value) if isinstance(item, ast.AST))


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _is_text(*operands: ast.expr) -> bool:
    """`+` of texts has no opposite."""
    return any(
        isinstance(operand, ast.JoinedStr)
        or (isinstance(operand, ast.Constant) and isinstance(operand.value, str | bytes))
        for operand in operands
    )
