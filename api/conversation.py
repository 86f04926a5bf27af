"""The messages of the responses that a new one goes on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from api.schemas.messages import arguments_for_template
from api.schemas.responses import items_of, messages_of
from api.services import Services
from api.tools.calls import split_answer
from store.responses import MAX_CHAIN, MAX_CHAIN_BYTES, conversation
from store.tenants import ApiKey
from tasks.errors import InvalidRequest, PreviousResponseNotFound
from tasks.ids import RESPONSE_PREFIX, parse_job_id
from tasks.jobs import TERMINAL, JobStatus

_PARAM = "previous_response_id"
PIECE_CHARS = 128 << 10  # of JSON, which take some 50 ms at most

Turn = Mapping[str, Any]  # a row of the conversation


async def earlier_messages(
    services: Services, caller: ApiKey, previous_id: str | None
) -> list[Mapping[str, Any]]:
    """Inputs and answers, oldest first; instructions are of one response alone and left out.

    Raises PreviousResponseNotFound, for others' and unstored ones too, and InvalidRequest for one
    that has no answer yet.
    """
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
    messages: list[Mapping[str, Any]] = []
    for turns in _pieces(chain):
        messages += await services.long_work.run(_messages, turns)
    return messages


def _check_begin(oldest: Mapping[str, Any]) -> None:
    """Raise unless the chain is whole and of a size to go on from."""
    goes_on = oldest["previous_id"] is not None
    if oldest["num_bytes"] >= MAX_CHAIN_BYTES or (goes_on and oldest["depth"] >= MAX_CHAIN):
        limits = f"{MAX_CHAIN} responses or {MAX_CHAIN_BYTES >> 20} MiB"
        message = f"The conversation has more than {limits}. Begin a new one."
        raise InvalidRequest(message, param=_PARAM)
    if goes_on:
        message = "A response that the conversation goes on from was deleted."
        raise PreviousResponseNotFound(message, param=_PARAM)


def _pieces(chain: Sequence[Turn]) -> Iterator[Sequence[Turn]]:
    """Turns that are read in one go, while other requests wait: few where they are long."""
    piece: list[Turn] = []
    num_chars = 0
    for turn in chain:
        piece.append(turn)
        num_chars += len(turn["request"]) + len(turn["output"] or "")
        if num_chars > PIECE_CHARS:
            yield piece
            piece, num_chars = [], 0
    yield piece


def _messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    return [message for turn in turns for message in _messages_of_turn(turn)]


def _messages_of_turn(turn: Turn) -> list[dict[str, Any]]:
    request = orjson.loads(turn["request"])
    messages = messages_of(items_of(request["input"]))
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
