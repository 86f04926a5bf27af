"""Which messages go when a conversation is too long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from api.prompts.prompt import ChatPrompt
from api.prompts.truncation import shorten


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


TURNS = [
    _message("system", "s0"),
    _message("user", "u1"),
    _message("assistant", "a1"),
    _message("developer", "d1"),
    _message("user", "u2"),
    _message("assistant", "calls"),
    _message("tool", "result"),
    _message("assistant", "a2"),
    _message("system", "s2"),
    _message("user", "u3"),
]


async def _shortened(messages: list[dict[str, Any]], room: int) -> list[str]:
    async def fits(chat: ChatPrompt) -> bool:
        return len(chat.messages) <= room

    chat = await shorten(ChatPrompt(messages), fits, asyncio.to_thread)
    return [message["content"] for message in chat.messages]


@pytest.mark.parametrize(
    ("room", "kept"),
    [
        (10, ["s0", "u1", "a1", "d1", "u2", "calls", "result", "a2", "s2", "u3"]),
        (9, ["s0", "d1", "u2", "calls", "result", "a2", "s2", "u3"]),
        (7, ["s0", "d1", "s2", "u3"]),
        (1, ["s0", "d1", "s2", "u3"]),
    ],
)
async def test_whole_turns_go_and_instructions_stay_in_their_place(
    room: int, kept: list[str]
) -> None:
    assert await _shortened(TURNS, room) == kept


async def test_what_comes_before_the_first_user_goes_with_its_turn() -> None:
    messages = [_message("assistant", "hello"), _message("user", "u1"), _message("user", "u2")]

    assert await _shortened(messages, 2) == ["u1", "u2"]
    assert await _shortened(messages, 0) == ["u2"]


class _Watched(list[dict[str, Any]]):
    """Messages that note which threads go through them."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        super().__init__(messages)
        self.threads: set[int] = set()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.threads.add(threading.get_ident())
        return super().__iter__()


async def test_the_event_loop_goes_through_no_messages() -> None:
    messages = _Watched(TURNS)

    assert await _shortened(messages, 7) == ["s0", "d1", "s2", "u3"]

    assert messages.threads
    assert threading.get_ident() not in messages.threads


async def test_instructions_alone_stay() -> None:
    assert await _shortened([_message("system", "s0")], 0) == ["s0"]


async def test_a_late_result_keeps_the_turn_of_its_call() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {}}}
    messages = [
        _message("user", "u1"),
        _message("user", "u2"),
        _message("assistant", "calls") | {"tool_calls": [call]},
        _message("user", "u3"),
        _message("tool", "result") | {"tool_call_id": "c"},
        _message("user", "u4"),
    ]

    assert await _shortened(messages, 5) == ["u2", "calls", "u3", "result", "u4"]
    assert await _shortened(messages, 4) == ["u4"]


async def test_a_call_is_found_though_turns_before_it_became_one() -> None:
    calls = [
        {"id": f"c{n}", "type": "function", "function": {"name": "f", "arguments": {}}}
        for n in range(2)
    ]
    messages = [
        _message("user", "u1"),
        _message("assistant", "call 0") | {"tool_calls": calls[:1]},
        _message("user", "u2"),
        _message("user", "u3"),
        _message("assistant", "call 1") | {"tool_calls": calls[1:]},
        _message("tool", "result 0") | {"tool_call_id": "c0"},
        _message("user", "u4"),
        _message("tool", "result 1") | {"tool_call_id": "c1"},
        _message("user", "u5"),
    ]

    assert await _shortened(messages, 8) == ["u5"]


async def test_turns_of_very_many_messages_take_little() -> None:
    """Whose results all belong to a call of the first turn."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {}}}
    first = [_message("user", "u"), _message("assistant", "calls") | {"tool_calls": [call]}]
    more = [_message("user", "u"), _message("tool", "result") | {"tool_call_id": "c"}] * 20_000
    began = time.thread_time()

    kept = await _shortened([*first, *more, _message("user", "last")], 1)

    assert kept == ["last"]
    assert time.thread_time() - began < 2
