"""The messages of the responses that a new one goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.schemas.responses import items_of, messages_of
from api.services import Services
from api.tools.calls import split_answer
from store.responses import conversation
from store.tenants import ApiKey
from tasks.errors import InvalidRequest, PreviousResponseNotFound
from tasks.ids import RESPONSE_PREFIX, parse_job_id
from tasks.jobs import TERMINAL, JobStatus

_PARAM = "previous_response_id"


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
    if any(turn["request"].get("store") is False for turn in chain):
        raise PreviousResponseNotFound(param=_PARAM)
    if chain[-1]["status"] not in TERMINAL or chain[-1]["status"] == JobStatus.FAILED:
        raise InvalidRequest("The previous response has no answer to go on from.", param=_PARAM)
    return [message for turn in chain for message in _messages(turn)]


def _messages(turn: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = messages_of(items_of(turn["request"]["input"]))
    for choice in turn["output"] or ():
        text, calls = split_answer(
            choice["text"], turn["tool_format"], job_id=turn["id"], choice=choice["index"]
        )
        answer: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            answer["tool_calls"] = [call.as_object() for call in calls]
        messages.append(answer)
    return messages
