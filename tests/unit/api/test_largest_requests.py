"""What holds the event loop longest is known for every route, and read beside it."""

from __future__ import annotations

import threading
from collections import defaultdict

import pytest
from starlette.routing import Route

from api.app import create_app
from api.long_work import SHORT_CHARS, LongWork
from api.prompts.prompt import ChatPrompt, Prompt, TextPrompt, is_short
from tests.support.belongings import Belongings
from tests.support.largest_requests import largest_requests


def test_every_route_has_its_largest_request_and_no_other_is_listed() -> None:
    served = {
        (method, route.path)
        for route in create_app().state.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD", "OPTIONS"}
    }

    requests = largest_requests(Belongings("tiny", defaultdict(str), defaultdict(list)))

    assert set(requests) - {("GET", "/openapi.json")} == served
    assert all(requests.values())


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (TextPrompt("x" * 100), True),
        (TextPrompt("x" * 101), False),
        (ChatPrompt([{"role": "user", "content": "x" * 50}]), True),
        (ChatPrompt([{"role": "user", "content": "x" * 101}]), False),
        (ChatPrompt([{"role": "user", "content": "x"}] * 20), False),
        (ChatPrompt([{"role": "user", "content": ""}], [{"name": [[]] * 101}]), False),
        (ChatPrompt([{"role": "user", "content": ""}], [{"x" * 101: 1}]), False),
    ],
)
def test_short_prompts_have_few_characters_and_few_values(prompt: Prompt, expected: bool) -> None:
    assert is_short(prompt, 100) is expected


@pytest.mark.parametrize(
    ("num_chars", "is_beside"), [(SHORT_CHARS, False), (SHORT_CHARS + 1, True)]
)
async def test_long_work_is_done_in_another_thread(num_chars: int, is_beside: bool) -> None:
    work = LongWork()
    try:
        thread = await work.unless_short(num_chars, threading.get_ident)
    finally:
        work.close()

    assert (thread != threading.get_ident()) is is_beside
