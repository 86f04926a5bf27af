"""Drops the oldest turns of a conversation that is too long for its model."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, TypeVar

from api.prompts.prompt import ChatPrompt, Messages

_FIXED_ROLES = frozenset({"system", "developer"})

T = TypeVar("T")


class RunOnThread(Protocol):
    """Does some work beside the event loop."""

    async def __call__(self, work: Callable[[], T], /) -> T: ...


async def shorten(
    chat: ChatPrompt, fits: Callable[[ChatPrompt], Awaitable[bool]], run: RunOnThread
) -> ChatPrompt:
    """The longest end of a conversation that fits, with all its instructions.

    A turn begins with a message of the user; what the assistant calls and what comes of it stays
    together. The last turn is never dropped, so the result may still be too long. There may be
    many thousand messages, so all that goes through them does so by `run`.
    """
    turns = await run(partial(_turns, chat.messages))

    def without(num_dropped: int) -> ChatPrompt:
        pairs = zip(chat.messages, turns, strict=True)
        kept = [message for message, turn in pairs if turn is None or turn >= num_dropped]
        return ChatPrompt(kept, chat.tools)

    low, high = 0, await run(lambda: max((turn for turn in turns if turn is not None), default=0))
    while low < high:  # fewer dropped turns never fit where more do not
        middle = (low + high) // 2
        if await fits(await run(partial(without, middle))):
            high = middle
        else:
            low = middle + 1
    return await run(partial(without, low))


def _turns(messages: Messages) -> list[int | None]:
    """The turn that each message belongs to; None for instructions, which stay where they are."""
    starts: list[int] = []  # where each turn begins
    place_of_call: dict[str, int] = {}
    for place, message in enumerate(messages):
        if message["role"] in _FIXED_ROLES:
            continue
        if message["role"] == "user" or not starts:
            starts.append(place)
        # What came out of a call of an earlier turn keeps that turn, and all between.
        called_at = place_of_call.get(message.get("tool_call_id", ""), place)
        while starts[-1] > called_at:
            starts.pop()
        place_of_call |= {call["id"]: place for call in message.get("tool_calls") or ()}
    return [
        None if message["role"] in _FIXED_ROLES else bisect_right(starts, place) - 1
        for place, message in enumerate(messages)
    ]
