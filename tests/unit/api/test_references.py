"""Ids of items, and how many a conversation may name."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from api.references import MAX_ITEMS, Place, find_items, place_of, wanted_of, with_named
from api.schemas.response_items import InputItem
from store.responses import MAX_CHAIN
from tasks.errors import InvalidRequest, UnsupportedParameter
from workers.batches.endpoints import ENDPOINTS

_JOB = UUID("01a22927e0ed7000b37c05778b0a272c")
_NOBODY: Any = None


def _reference(item_id: str) -> InputItem:
    return InputItem(type="item_reference", id=item_id)


def _message(text: str) -> InputItem:
    return InputItem.model_validate({"role": "user", "content": text})


@pytest.mark.parametrize(
    ("item_id", "place"),
    [
        (f"msg_{_JOB.hex}00", Place(_JOB, is_input=False, number=0)),
        (f"fc_{_JOB.hex}1f", Place(_JOB, is_input=False, number=31)),
        (f"fc_{_JOB.hex}100", Place(_JOB, is_input=False, number=256)),
        (f"msg_in_{_JOB.hex}0003", Place(_JOB, is_input=True, number=3)),
        (f"fco_in_{_JOB.hex}07ff", Place(_JOB, is_input=True, number=2_047)),
        (f"resp_{_JOB.hex}", None),
        (f"msg_{_JOB.hex}", None),
        (f"msg_{_JOB.hex}00\n", None),
        (f"MSG_{_JOB.hex}00", None),
        ("msg_188550d8-230a-5b2b-aa60-2d9e4e3007d0", None),
    ],
)
def test_an_id_says_where_its_item_stands(item_id: str, place: Place | None) -> None:
    assert place_of(item_id) == place


def test_what_stands_in_the_conversation_anyway_is_not_looked_for() -> None:
    own, other = f"msg_{_JOB.hex}00", f"msg_{uuid4().hex}00"
    chain = [_reference(other), _message("x")]

    wanted = wanted_of(
        [("previous_response_id", chain), (None, [_reference(own), _reference("msg_x")])], {_JOB}
    )

    assert wanted == {other: "previous_response_id", "msg_x": "input.1.id"}


def test_an_item_takes_the_place_of_its_first_reference() -> None:
    named = {"a": _message("a"), "b": _message("b")}
    items = [_reference("b"), _message("x"), _reference("b"), _reference("gone")]

    assert with_named(items, named) == [_message("b"), _message("x")]
    assert with_named([_reference("b"), _reference("a")], named) == [_message("a")]


@pytest.mark.parametrize(
    "ids",
    [
        [f"msg_{_JOB.hex}{n:04x}" for n in range(MAX_ITEMS + 1)],
        [f"msg_{uuid4().hex}00" for _ in range(MAX_CHAIN + 1)],
    ],
    ids=["items", "responses"],
)
async def test_too_many_are_refused_before_anything_is_read(ids: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await find_items(_NOBODY, _NOBODY, dict.fromkeys(ids, "input.0.id"))

    assert caught.value.param == "input.0.id"


def test_a_line_of_a_batch_names_no_items() -> None:
    body = {"model": "m", "input": [{"type": "item_reference", "id": f"msg_{_JOB.hex}00"}]}

    with pytest.raises(UnsupportedParameter) as caught:
        ENDPOINTS["/v1/responses"].generation(body)

    assert caught.value.param == "input"
