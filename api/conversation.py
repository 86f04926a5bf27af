"""The messages of a conversation: of the responses that a new one goes on from, and its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any
from uuid import UUID

import orjson

from api.generation import Generation
from api.long_work import in_pieces
from api.references import find_items, wanted_of, with_named
from api.schemas.messages import arguments_for_template
from api.schemas.response_items import InputItem, items_of, messages_of
from api.schemas.responses import CreateResponse
from api.services import Services
from api.tools.calls import split_answer
from store.responses import MAX_CHAIN, MAX_CHAIN_BYTES, conversation
from store.tenants import ApiKey
from tasks.errors import InvalidRequest, PreviousResponseNotFound
from tasks.ids import RESPONSE_PREFIX, parse_job_id
from tasks.jobs import TERMINAL, JobStatus

_PARAM = "previous_response_id"

# Stands in the request of each turn that names an item.
_MAY_NAME = '"id"'

Turn = Mapping[str, Any]  # a row of the conversation


async def with_conversation(
    services: Services, caller: ApiKey, parsed: CreateResponse, generation: Generation
) -> Generation:
    """The request with the inputs and answers before it, and with the items that it names.

    Raises PreviousResponseNotFound and ItemNotFound, for others' and unstored ones too, and
    InvalidRequest for a response that has no answer yet.
    """
    chain = await _chain(services, caller, parsed.previous_response_id)
    known = {turn["id"] for turn in chain}
    wanted: dict[str, str] = {}
    for turns in in_pieces(chain, _num_chars):
        wanted = await services.long_work.run(_wanted_of_turns, turns, known) | wanted
    own_wanted = await services.long_work.run(wanted_of, [(None, parsed.input)], known)
    wanted |= {id_: param for id_, param in own_wanted.items() if id_ not in wanted}
    if not chain and not wanted:
        return generation
    named = await find_items(services, caller, wanted) if wanted else {}
    earlier: list[Mapping[str, Any]] = []
    for turns in in_pieces(chain, _num_chars):
        earlier += await services.long_work.run(_messages, turns, named)
    own = await services.long_work.run(messages_of, with_named(parsed.input, named))
    return parsed.with_messages(generation, [*earlier, *own])


async def _chain(services: Services, caller: ApiKey, previous_id: str | None) -> list[Turn]:
    """Oldest first; instructions are of one response alone and left out."""
    if previous_id is None:
        return []
    job_id = parse_job_id(previous_id, RESPONSE_PREFIX)
    chain = await conversation(services.pool, caller.tenant_id, job_id) if job_id else []
    if not chain or chain[-1]["id"] != job_id:
        raise PreviousResponseNotFound(param=_PARAM)
    if not all(turn["is_stored"] for turn in chain):
        raise PreviousResponseNotFound(param=_PARAM)
    _check_begin(chain[0])
    if chain[-1]["status"] not in TERMINAL or chain[-1]["status"] == JobStatus.FAILED:
        raise InvalidRequest("The previous response has no answer to go on from.", param=_PARAM)
    return list(chain)


def _check_begin(oldest: Turn) -> None:
    """Raise unless the chain is whole and of a size to go on from."""
    goes_on = oldest["previous_id"] is not None
    if oldest["num_bytes"] >= MAX_CHAIN_BYTES or (goes_on and oldest["depth"] >= MAX_CHAIN):
        limits = f"{MAX_CHAIN} responses or {MAX_CHAIN_BYTES >> 20} MiB"
        message = f"The conversation has more than {limits}. Begin a new one."
        raise InvalidRequest(message, param=_PARAM)
    if goes_on:
        message = "A response that the conversation goes on from was deleted."
        raise PreviousResponseNotFound(message, param=_PARAM)


def _num_chars(turn: Turn) -> int:
    return len(turn["request"]) + len(turn["output"] or "")


def _wanted_of_turns(turns: Sequence[Turn], known: Set[UUID]) -> dict[str, str]:
    """Items are not kept: to look through those of a long conversation for garbage takes long."""
    naming = (turn for turn in turns if _MAY_NAME in turn["request"])
    inputs = ((_PARAM, items_of(orjson.loads(turn["request"])["input"])) for turn in naming)
    return wanted_of(inputs, known)


def _messages(turns: Sequence[Turn], named: dict[str, InputItem]) -> list[dict[str, Any]]:
    return [message for turn in turns for message in _messages_of_turn(turn, named)]


def _messages_of_turn(turn: Turn, named: dict[str, InputItem]) -> list[dict[str, Any]]:
    request = orjson.loads(turn["request"])
    messages = messages_of(with_named(items_of(request["input"]), named))
    for choice in orjson.loads(turn["output"]) if turn["output"] else ():
        said = split_answer(choice, turn["tool_format"], job_id=turn["id"], request=request)
        answer: dict[str, Any] = {"role": "assistant", "content": said.text}
        if said.calls:
            answer["tool_calls"] = [_for_template(call.as_object()) for call in said.calls]
        messages.append(answer)
    return messages


def _for_template(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = arguments_for_template(function["arguments"])
    return call | {"function": function | {"arguments": arguments}}
