"""Lark grammars that no finite text matches are found, and none that some text matches."""

from __future__ import annotations

import random

import pytest

from api.grammars.finite_lark import lark_can_end

ENDLESS = {
    "itself": 'start: "a" start',
    "itself behind": 'start: start "a"',
    "each other": 'start: "x" b\nb: "y" c | "z" start\nc: b',
    "every alternative": 'start: "a" start\n  | "b" start',
    "in a group": 'start: ("a" | "b") ("c" start | start)',
    "at least twice": 'start: "q" a{2,3}\na: "x" a',
    "at least once": 'start: a+\na: "x" a',
    "three times": 'start: a~3\na: "x" a',
    "behind JSON": 'start: %json {"type": "object", "x": "}"} start',
    "behind a regex": 'start: /[^\\/"]+/ start // "b"',
    "JSON that has no end": 'start: "x" %json {"items": {"$ref": "#"}, "minItems": 1, '
    '"type": "array"}',
    "modified": '?start: "a"\n  a\n!a: "b" a -> name',
    "statements": '%llguidance {"no_forcing": true}\n%ignore / /\nstart: INT start\n'
    "%import common.INT",
    "special tokens": "start: <|tool|> <[1-3]> start",
}
FINITE = {
    "an end": 'start: "a" start | "b"',
    "nothing": 'start: "a" start |',
    "nothing first": 'start: | "a" start',
    "optional": 'start: "a" start?',
    "brackets": 'start: "a" [start]',
    "any number": 'start: "a" start*',
    "none at least": 'start: "a" start{0,2}',
    "up to two": 'start: "a" start{,2}',
    "an empty rule": 'start: a "x"\na:',
    "one that is not needed": 'start: "a"\nb: "x" b',
    "an alternative with no end": 'start: "x" b | "y"\nb: "z" b',
    "a text like a rule": 'start: "start: x" /start/ // start',
    "a repetition before a rule": 'start: "a" b?\nb: "x" b',
    "a terminal": "start: T\nT: /a/ | T2\nT2: /b/",
    "attributes": "start: a\na[lazy]: /b+/",
    "a name in a comment": 'start: "a" # start\n',
    "nothing that is known": "start: @other start::x",
    "another dialect": 'root ::= "a" root',
    "JSON that has one": 'start: %json {"items": {"$ref": "#"}, "type": "array"}',
    "no JSON": 'start: %json {"items": start',
    "unclosed": 'start: ("a" start',
    "an operator": "start: A & ~B start",
    "nested": "start: " + "(" * 500 + "start" + ")" * 500,
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_has_no_end_is_found(name: str) -> None:
    assert not lark_can_end(ENDLESS[name])


@pytest.mark.parametrize("name", FINITE)
def test_what_can_end_or_is_not_understood_is_left_alone(name: str) -> None:
    assert lark_can_end(FINITE[name])


def test_random_rules_are_judged_as_by_trying_all_of_them() -> None:
    names = ["start", "a", "b", "c"]
    num_endless = 0
    for seed in range(500):
        chance = random.Random(seed)
        rules = {
            name: [
                [chance.choice([*names, '"x"']) for _ in range(chance.randint(1, 3))]
                for _ in range(chance.randint(1, 2))
            ]
            for name in names
        }
        good: set[str] = set()
        for _ in names:
            good |= {
                name
                for name, alternatives in rules.items()
                if any(all(p in good or p == '"x"' for p in parts) for parts in alternatives)
            }
        text = "\n".join(
            f"{name}: " + " | ".join(map(" ".join, parts)) for name, parts in rules.items()
        )

        assert lark_can_end(text) is ("start" in good), text
        num_endless += "start" not in good
    assert 50 < num_endless < 450


def test_large_grammars_are_no_work() -> None:
    chain = "start: r0\n" + "\n".join(f'r{n}: "x" r{n + 1}' for n in range(3_000))
    wide = "start: " + " ".join(f"r{n}" for n in range(5_000)) + '\nr0: "x" r0'

    assert lark_can_end(chain)
    assert not lark_can_end(chain + '\nr3000: "x" start')
    assert not lark_can_end(wide)
