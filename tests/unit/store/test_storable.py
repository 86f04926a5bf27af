"""What becomes of text that Postgres can't hold."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, cast

import psycopg
import pytest
from psycopg.adapt import AdaptersMap, PyFormat
from psycopg.types.json import Jsonb

from store.storable import (
    _mended_json,
    _refusing_json,
    mend_unstorable,
    mended,
    refuse_unstorable,
)
from tasks.errors import InvalidRequest

_BEYOND_64_BITS = 2**70


@pytest.mark.parametrize("other", [1, _BEYOND_64_BITS])
@pytest.mark.parametrize("text", ["a\0b", "half a pair: \ud83d"])
def test_text_that_can_not_be_stored_is_refused_whatever_stands_beside_it(
    text: str, other: int
) -> None:
    with pytest.raises(InvalidRequest):
        _refusing_json({"text": text, "other": other})


@pytest.mark.parametrize("text", ["plain", "escaped: \\u0000", "\N{GRINNING FACE}"])
def test_numbers_of_any_size_are_stored_beside_text_that_can_be(text: str) -> None:
    document = {"text": text, "other": _BEYOND_64_BITS}

    assert json.loads(_refusing_json(document)) == document


NAN, INFINITE = float("nan"), float("-inf")
UGLY: dict[str, Any] = {
    "a\0": ["\ud83d", ("x", NAN), 1, True, None, 2.5],
    "b": {"c": INFINITE, "d": _BEYOND_64_BITS},
}
MENDED: dict[str, Any] = {
    "a\ufffd": ["\ufffd", ["x", None], 1, True, None, 2.5],
    "b": {"c": None, "d": _BEYOND_64_BITS},
}


def test_a_value_is_mended_wherever_in_it_something_can_not_be_stored() -> None:
    assert mended(UGLY) == MENDED
    assert json.loads(_mended_json(UGLY)) == MENDED


@pytest.mark.parametrize("text", ["a\0b", "\ud83d"])
def test_what_we_say_ourselves_is_mended_and_not_refused(text: str) -> None:
    stored = text.replace("\0", "\ufffd").replace("\ud83d", "\ufffd")

    assert json.loads(_mended_json({"text": text})) == {"text": stored}


@pytest.mark.parametrize("dump", [_refusing_json, _mended_json])
def test_what_can_be_stored_is_written_as_it_is(dump: Callable[[Any], bytes | str]) -> None:
    assert dump({"text": "é", "other": [1, None]}) == '{"text":"é","other":[1,null]}'.encode()
    assert json.loads(dump({"text": NAN})) == {"text": None}
    assert json.loads(dump({"text": "\\u0000"})) == {"text": "\\u0000"}


@pytest.mark.parametrize("document", [{"a": "\0"}, {"a\0": 1}, {"a": ["\ud83d", _BEYOND_64_BITS]}])
def test_a_refusal_says_what_is_wrong(document: Any) -> None:
    with pytest.raises(InvalidRequest, match="The request holds a NUL or a lone surrogate"):
        _refusing_json(document)


class _Connection:
    """Has what a connection of psycopg is told how to write with."""

    def __init__(self) -> None:
        self.adapters = AdaptersMap(psycopg.adapters)

    def dumped(self, value: Any) -> Any:
        dumper = self.adapters.get_dumper(type(value), PyFormat.TEXT)
        return bytes(dumper(type(value), cast(Any, None)).dump(value) or b"")


def test_a_connection_refuses_texts_and_documents() -> None:
    connection = _Connection()
    refuse_unstorable(cast(Any, connection))

    assert connection.dumped("é") == "é".encode()
    assert connection.dumped(Jsonb({"a": 1})) == b'{"a":1}'
    for value in ("\0", "\ud83d", Jsonb("\0")):
        with pytest.raises(InvalidRequest):
            connection.dumped(value)


def test_a_connection_mends_texts_and_documents() -> None:
    connection = _Connection()
    mend_unstorable(cast(Any, connection))

    assert [connection.dumped(text) for text in ("é", "\0", "\ud83d")] == [
        text.encode() for text in ("é", "\ufffd", "\ufffd")
    ]
    assert json.loads(connection.dumped(Jsonb("\0"))) == "\ufffd"


@pytest.mark.parametrize("num_before", range(5))
def test_a_nul_is_told_from_an_escaped_backslash(num_before: int) -> None:
    text = "n\n" + "\\" * num_before
    with pytest.raises(InvalidRequest):
        _refusing_json([text + "\0"])

    assert json.loads(_refusing_json([text + "u0000"])) == [text + "u0000"]


def test_a_long_document_is_looked_through_at_once() -> None:
    began = time.thread_time()

    _refusing_json(["word \\n" * 150_000])

    assert time.thread_time() - began < 0.05
