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
        "x oops y",
        [],
    ),
    "an end of nothing": ("pipes", "x <|tool_call_end|>y", "x y", []),
    "two ends": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {}}</tool_call>\n</tool_call>',
        "",
        [("f", "{}")],
    ),
    "a call that has lost its end": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {}}\n<tool_call>{"name": "g", "arguments": {}}',
        "",
        [("f", "{}"), ("g", "{}")],
    ),
    "not a call, and no end": ("hermes", "x <tool_call>oops", "x oops", []),
    "a name that is no text": (
        "hermes",
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        '{"name": "\\ud800", "arguments": {}}',
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
    "no marks, an object with a name": (
        "llama3",
        '{"name": "Ada", "age": 36}',
        '{"name": "Ada", "age": 36}',
        [],
    ),
    "nothing": ("pipes", "", "", []),
}


@pytest.mark.parametrize("name", CASES)
def test_any_cut_of_the_text_gives_the_same_calls(name: str) -> None:
    format_, text, answer, calls = CASES[name]
    rng = random.Random(0)

    for _ in range(100):
        assert _parse(format_, _cut(rng, text)) == (answer, calls)


CALL = {
    "hermes": '<tool_call>\n{"name": "get", "arguments": {"a": "ü}"}}\n</tool_call>',
    "pipes": '<|tool_call|>{"name": "get", "arguments": {"a": "ü}"}}<|tool_call_end|>',
    "llama3": '{"name": "get", "parameters": {"a": "ü}"}}',
}


@pytest.mark.parametrize("format_", CALL)
def test_no_cut_of_calls_is_text(format_: str) -> None:
    """Forced calls: nothing else stands in the answer."""
    text = CALL[format_] if format_ == "llama3" else f"{CALL[format_]}\n{CALL[format_]}"
    rng = random.Random(0)

    for length in range(len(text)):
        answer, calls = _parse(format_, _cut(rng, text[:length]), is_cut=True)

        assert answer == ""
        num_names = text[:length].count('"get"')
        assert [name for name, _ in calls] == ["get"] * num_names
        assert all('{"a": "ü}"}'.startswith(arguments) for _, arguments in calls)


@pytest.mark.parametrize("format_", ["hermes", "pipes"])
def test_a_text_before_a_cut_call_stays(format_: str) -> None:
    text = "hi " + CALL[format_]
    rng = random.Random(0)

    for length in range(len(text)):
        answer, _ = _parse(format_, _cut(rng, text[:length]), is_cut=True)

        assert answer in ("hi "[:length], "hi <", "hi " + CALL[format_][:2])


@pytest.mark.parametrize(
    ("format_", "text", "calls"),
    [
        ("hermes", '<tool_call>{"name": "f"', [("f", "")]),
        ("hermes", '<tool_call>{"name": "f', []),
        ("hermes", '<tool_call>{"name": "f", "argu', [("f", "")]),
        ("hermes", '<tool_call>{"arguments": {"z": [1', []),
        ("hermes", '<tool_call>{"arguments": {"z": 1}, "name": "g"', [("g", '{"z": 1}')]),
        ("hermes", '<tool_call>{"id": 5, "name": "g", "arguments": {"z', [("g", '{"z')]),
        ("llama3", '{"name": "f"', [("f", "")]),
        ("llama3", '{"name": "f", "para', [("f", "")]),
    ],
)
def test_a_cut_call_is_there_once_its_name_is(
    format_: str, text: str, calls: list[tuple[str, str]]
) -> None:
    rng = random.Random(0)

    for is_cut in (True, False):  # a stop string ends a text, too
        assert _parse(format_, _cut(rng, text), is_cut=is_cut) == ("", calls)


@pytest.mark.parametrize(
    ("text", "is_cut", "is_in_call"),
    [
        (CALL["hermes"], False, False),
        (CALL["hermes"][:-3], True, False),  # its arguments are whole
        (CALL["hermes"].split("}")[0], True, True),
        ("<tool_call>", True, True),
        ("hi", True, False),
        ("hi <tool_", True, True),
    ],
)
def test_it_is_known_whether_the_end_came_inside_of_a_call(
    text: str, is_cut: bool, is_in_call: bool
) -> None:
    parser = ToolCallParser(format_named("hermes"))
    parser.feed(text)

    parser.end(is_cut=is_cut)

    assert parser.is_cut_in_call is is_in_call


@pytest.mark.parametrize("format_", CALL)
@pytest.mark.parametrize("before", ["", "a ü ", "<", " \n"])
def test_texts_say_where_they_stood(format_: str, before: str) -> None:
    text = before + CALL[format_] + (" then" if format_ != "llama3" else "")
    parser = ToolCallParser(format_named(format_))
    pieces = [piece for part in text for piece in parser.feed(part)] + parser.end(is_cut=False)

    for piece in pieces:
        if isinstance(piece, TextPiece):
            assert text[piece.at :].startswith(piece.text)
    assert parser.num_settled == len(text)


def _cut(rng: random.Random, text: str) -> list[str]:
    pieces = []
    while text:
        length = rng.randint(1, 6)
        pieces.append(text[:length])
        text = text[length:]
    return pieces


def _parse(
    format_: str, pieces: list[str], *, is_cut: bool = False
) -> tuple[str, list[tuple[str, str]]]:
    parser = ToolCallParser(format_named(format_))
    found = [piece for text in pieces for piece in parser.feed(text)] + parser.end(is_cut=is_cut)
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
