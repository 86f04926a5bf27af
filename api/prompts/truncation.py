"""Drops the oldest turns of a conversation that is too long for its model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from api.prompts.prompt import ChatPrompt, Messages

_FIXED_ROLES = frozenset({"system", "developer"})


async def shorten(chat: ChatPrompt, fits: Callable[[ChatPrompt], Awaitable[bool]]) -> ChatPrompt:
    """The longest end of a conversation that fits, behind its instructions.

    A turn begins with a message of the user; what the assistant calls and what comes of it stays
    together. The last turn is never dropped, so the result may still be too long.
    """
    fixed = [message for message in chat.messages if message["role"] in _FIXED_ROLES]
    turns = _turns([message for message in chat.messages if message["role"] not in _FIXED_ROLES])

    def without(num_dropped: int) -> ChatPrompt:
        kept = [message for turn in turns[num_dropped:] for message in turn]
        return ChatPrompt([*fixed, *kept], chat.tools)

    low, high = 0, max(0, len(turns) - 1)
    while low < high:  # fewer dropped turns never fit where more do not
        middle = (low + high) // 2
        if await fits(without(middle)):
            high = middle
        else:
            low = middle + 1
    return without(low)


def _turns(messages: Messages) -> list[list[Mapping[str, Any]]]:
    turns: list[list[Mapping[str, Any]]] = []
    for message in messages:
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return turns
