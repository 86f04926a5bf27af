from __future__ import annotations

import json

import pytest

from store.storable import _refusing_json
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
