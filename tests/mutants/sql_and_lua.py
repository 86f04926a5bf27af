"""Mistakes in SQL, which stands in strings of Python, and in Lua: found by patterns in the text."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Callable, Iterator
from itertools import accumulate

from tests.mutants.mutant import REVERSED, Mutant, Span

# What ends a condition that AND or WHERE begins, outside of parentheses of its own.
_END = re.compile(
    r"\b(?:AND|OR|GROUP|ORDER|LIMIT|FOR|RETURNING|ON|UNION|HAVING|WHEN|THEN|ELSE|END|LEFT|JOIN|"
    r"CROSS|WINDOW|OFFSET|SET|WHERE|DO)\b|;"
)
_CONDITION = re.compile(r"\b(AND|WHERE)\s")
_IS_SQL = re.compile(
    r"\b(SELECT|INSERT INTO|UPDATE|DELETE FROM|WHERE|FROM|JOIN|RETURNING|ORDER BY|AND)\b"
)

_COMPARISONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}


def _compared(found: re.Match[str]) -> str:
    """In a line that asks for the time now, moments."""
    begin = found.string.rfind("\n", 0, found.start()) + 1
    line = found.string[begin : found.string.find("\n", found.end())]
    words = REVERSED if "now()" in line or "clock_timestamp()" in line else _COMPARISONS
    return words[found[0]]


_Text = str | Callable[[re.Match[str]], str]
_SQL: list[tuple[str, str, _Text]] = [
    ("comparison", r"(?<=\s)[<>]=?(?=\s)", _compared),
    ("comparison", r"(?:(?<=AND )|(?<=WHERE )|(?<=OR )|(?<=WHEN )|(?<=ON ))[\w.]+ =(?= )", ""),
    ("null", r"\bIS NULL\b", "IS NOT NULL"),
    ("null", r"\bIS NOT NULL\b", "IS NULL"),
    ("and/or", r"(?<=\s)OR(?=\s)", "AND"),
    ("not dropped", r"\bNOT (?=EXISTS|IN|[a-z(])", ""),
    ("lock", r"\s+FOR (?:NO KEY )?UPDATE(?: OF \w+)?(?: SKIP LOCKED)?", ""),
    ("order", r"\bDESC\b", "ASC"),
    # Backwards: a constant in its place would count as a column, often the very one.
    (
        "order",
        r"(?<=ORDER BY )(?:\w+\.)?\w+(?=[,)]|\s+(?!DESC|ASC|=)|$)",
        lambda found: f"{found[0]} DESC",
    ),
    ("extreme", r"\bleast\b", "greatest"),
    ("extreme", r"\bgreatest\b", "least"),
    ("extreme", r"\bmin\(", "max("),
    ("extreme", r"\bmax\(", "min("),
    ("arithmetic", r"(?<=\s)\+(?= (?:%|\w))", "-"),
    ("arithmetic", r"(?<=\s)-(?= (?:%|\w))", "+"),
    ("join", r"\bLEFT JOIN\b", "JOIN"),
    ("coalesce", r"\bcoalesce\(((?:\w+\.)?\w+), [^()]+?\)", lambda found: found[1]),
]
_LUA: list[tuple[str, str, _Text]] = [
    ("comparison", r" < ", " <= "),
    ("comparison", r" <= ", " < "),
    ("comparison", r" > ", " >= "),
    ("comparison", r" >= ", " > "),
    ("comparison", r" == ", " ~= "),
    ("comparison", r" ~= ", " == "),
    ("and/or", r"\band\b", "or"),
    ("and/or", r"\bor\b", "and"),
    ("not dropped", r"\bnot ", ""),
    ("arithmetic", r" \+ ", " - "),
    ("arithmetic", r" - ", " + "),
    ("extreme", r"\bmath\.max\b", "math.min"),
    ("extreme", r"\bmath\.min\b", "math.max"),
    ("constant", r"(?<=[ {])[01]\b", lambda found: str(1 - int(found[0]))),
    ("statement dropped", r"(?m)^ *redis\.call\(.*\)$", ""),
    ("condition", r"\bif .+? then", "if true then"),
    ("condition", r"\bif .+? then", "if false then"),
]


def lua_mutants(path: str, source: str) -> list[Mutant]:
    """Comments are blanked, so that positions stay."""
    code = re.sub(r"--.*", lambda found: " " * len(found[0]), source)
    return list(_matches(path, code, Span(0, len(code)), _LUA))


def sql_mutants(path: str, source: str) -> list[Mutant]:
    """Of each string literal that is SQL, docstrings aside."""
    found: list[Mutant] = []
    for span in _sql_strings(source):
        found += _matches(path, source, span, _SQL)
        found += _dropped_conditions(path, source, span)
    return found


def _sql_strings(source: str) -> Iterator[Span]:
    lines = source.splitlines(keepends=True)
    starts = [0, *accumulate(map(len, lines))]
    is_statement_start = True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if tokenize.tok_name[token.type] in ("STRING", "FSTRING_MIDDLE"):
            is_docstring = is_statement_start and token.string.startswith('"""')
            if not is_docstring and _IS_SQL.search(token.string):
                yield Span(
                    starts[token.start[0] - 1] + token.start[1],
                    starts[token.end[0] - 1] + token.end[1],
                )
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            is_statement_start = token.type in _BEFORE_STATEMENTS


_BEFORE_STATEMENTS = (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


def _matches(
    path: str, source: str, span: Span, patterns: list[tuple[str, str, _Text]]
) -> Iterator[Mutant]:
    for kind, pattern, text in patterns:
        for found in re.compile(pattern).finditer(source, span.start, span.end):
            if source[found.start() : found.end()].endswith(" ="):
                new = found[0][:-1] + "<>"
            else:
                new = text(found) if callable(text) else text
            yield _mutant(path, source, Span(*found.span()), new, kind)


def _dropped_conditions(path: str, source: str, span: Span) -> Iterator[Mutant]:
    """`AND x` goes; `WHERE x` becomes `WHERE true`."""
    for found in _CONDITION.finditer(source, span.start, span.end):
        before = source[span.start : found.start()]
        if found[1] == "AND" and re.search(r"BETWEEN\s+\S+\s*$", before):
            continue
        begin = found.start(1) if found[1] == "AND" else found.end()
        end = _end_of_condition(source, found.end(), span.end)
        text = "" if found[1] == "AND" else "true "
        if source[begin:end].strip(" \n\"'"):
            yield _mutant(path, source, Span(begin, end), text, "condition dropped")


def _end_of_condition(source: str, start: int, limit: int) -> int:
    depth = 0
    for position in range(start, limit):
        character = source[position]
        if character in "([":
            depth += 1
        elif character in ")]":
            depth -= 1
        if depth < 0 or character == '"':
            return position
        if depth == 0 and _END.match(source, position):
            return position
    return limit


def _mutant(path: str, source: str, span: Span, text: str, kind: str) -> Mutant:
    line = source.count("\n", 0, span.start) + 1
    return Mutant(path, span.start, span.end, text, kind, line)
