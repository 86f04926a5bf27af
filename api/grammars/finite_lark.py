"""Finds grammars in llguidance's dialect of Lark that no finite text matches: `start: "a" start`.

A rule can end if one of its alternatives needs none that can't, which is found from the rules that
need no others. Terminals have no recursion, so what is wrong with them sees llguidance. What isn't
understood here is taken to be good: a grammar that some text matches is never refused.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from api.grammars.finite import Looks, can_end

# Looks at the parts of rules; a grammar that takes more is not judged.
MAX_LOOKS = 50_000
MAX_NESTING = 50

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*|\#[^\n]*)
    |(?P<end>"(?:[^"\\\n]|\\.)*"i?|/(?:[^/\\\n]|\\.)+/[a-z]*|<[^<>\s][^<>\n]*>)
    |(?P<embedded>%(?:json|regex)(?=\s*\{))
    |(?P<statement>%(?:ignore|import|llguidance)\b)
    |(?P<alias>->)
    |(?P<repeat>[*+?]|\{\s*\d*\s*(?:,\s*\d*\s*)?\}|~\s*\d+(?:\s*\.\.\s*\d+)?)
    |(?P<name>[_a-zA-Z]\w*)
    |(?P<other>\.\.|[()\[\]|:!=,.&~{}]|\d+)""",
    re.VERBOSE,
)
# A `?` or `!` in front of a rule's name is no repetition of what is before it.
_MODIFIER = re.compile(r"^[ \t]*[?!]+(?=[_a-z]\w*\s*:)", re.MULTILINE)
_NEVER = "%never"  # stands for a schema that no text satisfies; no rule can be called so
_NUMBER = re.compile(r"\d+")

Token = tuple[str, str]  # kind, text


class _NotUnderstood(Exception):
    """Or too large."""


@dataclass(slots=True)
class _Group:
    """Alternatives of sequences. A part is a rule's name or a group; an empty one means text."""

    alternatives: list[list[str | _Group]] = field(default_factory=lambda: [[]])


def lark_can_end(lark: str) -> bool:
    """Whether some finite text matches a grammar, as far as that can be told."""
    try:
        return _Rules(_rules(lark)).can_end("start")
    except _NotUnderstood:
        return True


class _Rules:
    """The rules of one grammar, and which of them are known to end."""

    def __init__(self, rules: dict[str, _Group]) -> None:
        self._rules = rules
        self._good: set[str] = set()
        self._num_left = MAX_LOOKS
        self._dependents: dict[str, list[str]] = {}

    def can_end(self, start: str) -> bool:
        queue = deque(self._rules)
        while queue:
            name = queue.popleft()
            if name in self._good:
                continue
            missing: list[str] = []
            if self._is_good(self._rules[name], missing):
                self._good.add(name)
                queue.extend(self._dependents.pop(name, ()))
            for other in missing:
                self._dependents.setdefault(other, []).append(name)
        return start in self._good or start not in self._rules

    def _is_good(self, group: _Group, missing: list[str]) -> bool:
        return any(
            all(self._part_is_good(part, missing) for part in alternative)
            for alternative in group.alternatives
        )

    def _part_is_good(self, part: str | _Group, missing: list[str]) -> bool:
        self._num_left -= 1
        if self._num_left < 0:
            raise _NotUnderstood
        if isinstance(part, _Group):
            return self._is_good(part, missing)
        if part in self._good or part not in self._rules:
            return True
        missing.append(part)
        return False


def _rules(lark: str) -> dict[str, _Group]:
    """Those that may be recursive: the names of others begin with a capital letter."""
    tokens = list(_tokens(_MODIFIER.sub("", lark)))
    rules = {_NEVER: _Group([[_NEVER]])}
    name, begin, at = "", 0, 0
    while at < len(tokens):
        behind = _behind_head(tokens, at)
        if behind is None:
            at += 1
            continue
        _add_rule(rules, name, tokens[begin:at])
        name, begin = tokens[at][1], behind
        at = behind
    _add_rule(rules, name, tokens[begin:])
    return rules


def _add_rule(rules: dict[str, _Group], name: str, body: list[Token]) -> None:
    if not name.strip("_")[:1].islower():
        return
    if name in rules or any(kind == "other" and text in "&~{}" for kind, text in body):
        raise _NotUnderstood
    rules[name] = _parsed(body)


def _tokens(lark: str) -> Iterator[Token]:
    at, looks = 0, Looks()
    while at < len(lark):
        token = _TOKEN.match(lark, at)
        if token is None or token.lastgroup is None:
            raise _NotUnderstood
        at = token.end()
        if token.lastgroup == "embedded":
            value, at = _json(lark, at)
            is_schema = token[0] == "%json" and isinstance(value, dict)
            is_endless = is_schema and not can_end(value, looks)
            yield ("name", _NEVER) if is_endless else ("end", "")
        elif token.lastgroup != "space":
            yield token.lastgroup, token[0]


def _json(text: str, at: int) -> tuple[Any, int]:
    """The object that comes next, and where it ends."""
    try:
        return json.JSONDecoder().raw_decode(text, text.index("{", at))
    except (ValueError, RecursionError):
        raise _NotUnderstood from None


def _behind_head(tokens: list[Token], at: int) -> int | None:
    """Where a rule's body begins whose name stands here, or a statement's; None for no such."""
    kind, _ = tokens[at]
    if kind == "statement":
        return at + 1
    if kind != "name" or at + 1 >= len(tokens):
        return None
    behind = at + 1
    if tokens[behind] == ("other", "["):  # attributes, or something that may follow the name
        while behind < len(tokens) and tokens[behind] != ("other", "]"):
            behind += 1
        if tokens[behind : behind + 2] == [("other", "]"), ("other", ":")]:
            raise _NotUnderstood
        return None
    return behind + 1 if tokens[behind] == ("other", ":") else None


def _parsed(body: list[Token]) -> _Group:
    stack = [_Group()]
    opened: list[str] = []
    for at, (kind, text) in enumerate(body):
        last = stack[-1].alternatives[-1]
        if kind == "name":
            if at == 0 or body[at - 1][0] != "alias":
                last.append(text)
        elif kind == "end":
            last.append(_Group())
        elif kind == "repeat":
            _repeat(last, text)
        elif text == "|":
            stack[-1].alternatives.append([])
        elif text in ("(", "["):
            opened.append(text)
            stack.append(_Group())
        elif text in (")", "]"):
            _close(stack, opened, text)
        elif kind == "other" and text != "..":
            raise _NotUnderstood
        if len(stack) > MAX_NESTING:
            raise _NotUnderstood
    if opened:
        raise _NotUnderstood
    return stack[0]


def _repeat(last: list[str | _Group], text: str) -> None:
    if not last:
        raise _NotUnderstood
    number = _NUMBER.search(text.partition(",")[0])
    least = int(number[0]) if number else int(text == "+")
    if not least:
        last[-1] = _Group()


def _close(stack: list[_Group], opened: list[str], text: str) -> None:
    if not opened or (opened.pop() == "(") != (text == ")"):
        raise _NotUnderstood
    group = stack.pop()
    stack[-1].alternatives[-1].append(group if text == ")" else _Group())
