"""Calls are found in a model's text however it is cut into pieces."""

from __future__ import annotations

import random

import pytest

from api.tools.formats import format_named
from api.tools.parser import CallArguments, CallBegin, TextPiece, ToolCallParser

# Format, text, text for the user, calls as (name, arguments).
CASES = {
    "two calls and a text": (
        "hermes",
        'hi <tool_call>\n{"name": "f", "arguments": {"a": "}</x\\"", "b": [1, {"c": 2}]}}\n'
        '</tool_call>\n<tool_call>{"name": "g", "arguments": {}}</tool_call>',
        "hi ",
        [("f", '{"a": "}</x\\"", "b": [1, {"c": 2}]}'), ("g", "{}")],
    ),
    "text behind a call": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {}}</tool_call>\n  and <',
        "\n  and <",
        [("f", "{}")],
    ),
    "half a mark is text": ("hermes", "1 < 2 <tool", "1 < 2 <tool", []),
    "not a call after all": (
        "hermes",
        "x <tool_call>oops</tool_call> y",
        "x <tool_call>oops</tool_call> y",
        [],
    ),
    "cut in the arguments": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": 1',
        "",
        [("f", '{"a": 1')],
    ),
    "arguments first": (
        "hermes",
        '<tool_call>{"arguments": {"z": 1}, "name": "g"}</tool_call>',
        "",
        [("g", '{"z": 1}')],
    ),
    "no arguments": ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
    "marks that are tokens": (
        "pipes",
        '<|tool_call|>{"name": "w", "arguments": {"city": "Par<|is"}}<|tool_call_end|>',
        "",
        [("w", '{"city": "Par<|is"}')],
    ),
    "no marks, a call": (
        "llama3",
        '{"name": "f", "parameters": {"a": 1}}',
        "",
        [("f", '{"a": 1}')],
    ),
    "no marks, other JSON": ("llama3", '{"x": 1}', '{"x": 1}', []),
    "no marks, half a call": ("llama3", '{"na', '{"na', []),
    "nothing": ("pipes", "", "", []),
}


@pytest.mark.parametrize("name", CASES)
def test_any_cut_of_the_text_gives_the_same_calls(name: str) -> None:
    format_, text, answer, calls = CASES[name]
    rng = random.Random(0)

    for _ in range(100):
        assert _parse(format_, _cut(rng, text)) == (answer, calls)


def _cut(rng: random.Random, text: str) -> list[str]:
    pieces = []
    while text:
        length = rng.randint(1, 6)
        pieces.append(text[:length])
        text = text[length:]
    return pieces


def _parse(format_: str, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    parser = ToolCallParser(format_named(format_))
    found = [piece for text in pieces for piece in parser.feed(text)] + parser.end()
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for piece in found:
        match piece:
            case CallBegin(index, name):
                names[index], arguments[index] = name, ""
            case CallArguments(index, text):
                arguments[index] += text
    answer = "".join(piece.text for piece in found if isinstance(piece, TextPiece))
    return answer, [(names[index], arguments[index]) for index in sorted(names)]
