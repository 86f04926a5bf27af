"""Items of earlier responses that an input names by their ids.

An id says which response the item is of, and where it stands there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from api.dialects.response import output_items
from api.long_work import in_pieces
from api.schemas.response_items import REFERENCE, ContentPart, InputItem, items_of
from api.schemas.strict import Skipped
from api.services import Services
from store.responses import MAX_CHAIN, MAX_CHAIN_BYTES, named_responses
from store.tenants import ApiKey
from tasks.errors import InvalidRequest, ItemNotFound
from tasks.jobs import TERMINAL

_ID = re.compile(r"(?:msg|fc|fco)_(in_)?([0-9a-f]{32})([0-9a-f]{2,6})")

Items = Sequence[InputItem | Skipped]

MAX_ITEMS = 4_096  # that one conversation names: they are looked through on the event loop


@dataclass(frozen=True, slots=True)
class Place:
    """Where an item stands: in the input or in the output of a response."""

    job_id: UUID
    is_input: bool
    number: int


def place_of(item_id: str) -> Place | None:
    """None for an id that is none of ours."""
    parts = _ID.fullmatch(item_id)
    if parts is None:
        return None
    return Place(UUID(parts[2]), is_input=parts[1] is not None, number=int(parts[3], 16))


def references_in(items: Items) -> Iterator[tuple[int, str]]:
    """The ids that items name, each with the place of its item."""
    for number, item in enumerate(items):
        if isinstance(item, InputItem) and item.type == REFERENCE:
            assert item.id is not None
            yield number, item.id


def with_named(items: Items, named: dict[str, InputItem]) -> list[InputItem | Skipped]:
    """Items with what they name in the place of the references. Takes it out of `named`: in a
    conversation an item stands once.
    """
    found = (_found(item, named) for item in items)
    return [item for item in found if item is not None]


def _found(item: InputItem | Skipped, named: dict[str, InputItem]) -> InputItem | Skipped | None:
    if isinstance(item, Skipped) or item.type != REFERENCE:
        return item
    return named.pop(item.id or "", None)


async def find_items(
    services: Services, caller: ApiKey, wanted: Mapping[str, str]
) -> dict[str, InputItem]:
    """The caller's items by their ids; `wanted` has the field to mend of each.

    Raises ItemNotFound, for others' and unstored ones too, and InvalidRequest for too many.
    """
    param = next(iter(wanted.values()))
    if len(wanted) > MAX_ITEMS:
        message = f"The conversation names more than {MAX_ITEMS} items by their ids."
        raise InvalidRequest(message, param=param)
    places = _places(wanted)
    rows = await _responses(services, caller, places.values(), param)
    found = await _items_at(services, places, rows)
    for id_, param in wanted.items():
        if id_ not in found:
            raise ItemNotFound(param=param)
    return found


async def find_kept(services: Services, caller: ApiKey, ids: Iterable[str]) -> dict[str, InputItem]:
    """Those of the caller's items that are there: a page's, to be shown."""
    places = _places(ids)
    rows = await named_responses(services.pool, caller.tenant_id, _with_input(places.values()))
    return await _items_at(services, places, rows)


async def _items_at(
    services: Services, places: Mapping[str, Place], rows: Sequence[Mapping[str, Any]]
) -> dict[str, InputItem]:
    lists: dict[tuple[UUID, bool], list[InputItem]] = {}
    for piece in in_pieces(rows, _num_chars):
        lists |= await services.long_work.run(_lists_of, piece)
    found: dict[str, InputItem] = {}
    for id_, place in places.items():
        items = lists.get((place.job_id, place.is_input), [])
        if place.number < len(items) and items[place.number].type != REFERENCE:
            found[id_] = items[place.number]
    return found


def _places(ids: Iterable[str]) -> dict[str, Place]:
    """Of those that can be ids of items."""
    return {id_: place for id_ in ids if (place := place_of(id_)) is not None}


def _with_input(places: Iterable[Place]) -> dict[UUID, bool]:
    """The responses of items, and of which of them the input is needed."""
    with_input: dict[UUID, bool] = {}
    for place in places:
        with_input[place.job_id] = with_input.get(place.job_id, False) or place.is_input
    return with_input


async def _responses(
    services: Services, caller: ApiKey, places: Iterable[Place], param: str
) -> list[dict[str, Any]]:
    wanted = _with_input(places)
    if len(wanted) > MAX_CHAIN:
        message = f"The items are of more than {MAX_CHAIN} responses."
        raise InvalidRequest(message, param=param)
    rows = await named_responses(services.pool, caller.tenant_id, wanted)
    if rows and rows[-1]["num_bytes"] >= MAX_CHAIN_BYTES:
        message = f"The responses that the items are of have more than {MAX_CHAIN_BYTES >> 20} MiB."
        raise InvalidRequest(message, param=param)
    return rows


def _num_chars(row: Mapping[str, Any]) -> int:
    return len(row["input"] or "") + len(row["output"] or "")


def _lists_of(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[UUID, bool], list[InputItem]]:
    """What is in the inputs and outputs of responses."""
    lists: dict[tuple[UUID, bool], list[InputItem]] = {}
    for row in rows:
        if row["input"] is not None:
            lists[row["id"], True] = items_of(orjson.loads(row["input"]))
        if row["output"] is not None and row["status"] in TERMINAL:
            lists[row["id"], False] = _answer(row)
    return lists


def _answer(row: Mapping[str, Any]) -> list[InputItem]:
    choices = orjson.loads(row["output"])
    items = output_items(row["id"], row["tool_format"], choices, is_whole=True)
    return [_as_input(item) for item in items]


def _as_input(item: Mapping[str, Any]) -> InputItem:
    """Unchecked: a model may have called what no client could."""
    if item["type"] != "message":
        names = ("type", "id", "call_id", "name", "arguments")
        return InputItem.model_construct(**{name: item[name] for name in names})
    parts = [ContentPart(type="output_text", text=part["text"]) for part in item["content"]]
    return InputItem.model_construct(type="message", id=item["id"], role="assistant", content=parts)


def wanted_of(parts: Iterable[tuple[str | None, Items]], known: Set[UUID]) -> dict[str, str]:
    """Of all references of a conversation those to items that don't stand in it anyway, each with
    the field to mend. `parts` are inputs, with a field where it isn't the item itself; `known` are
    the responses that the conversation goes on from.
    """
    wanted: dict[str, str] = {}
    for param, items in parts:
        for number, id_ in references_in(items):
            place = place_of(id_)
            if place is None or place.job_id not in known:
                wanted.setdefault(id_, param or f"input.{number}.id")
    return wanted
