from __future__ import annotations

import asyncio
from functools import partial
from uuid import uuid4

from api.streams.starts import Starts


async def test_one_turn_of_the_loop_begins_a_few_of_a_tenants_streams_and_all_in_the_end() -> None:
    starts, busy, other, begun = Starts(max_a_turn=3), uuid4(), uuid4(), list[str]()

    for number in range(8):
        starts.begin(busy, partial(begun.append, str(number)))
    starts.begin(other, partial(begun.append, "other"))
    counts = [len(begun)]
    while starts._waiting:
        await asyncio.sleep(0)
        counts.append(len(begun))

    assert begun == ["0", "other", "1", "2", "3", "4", "5", "6", "7"]
    assert counts[:4] == [2, 5, 8, 9]


async def test_lone_stream_begins_at_once() -> None:
    starts, begun = Starts(), list[int]()
    for number in range(3):
        starts.begin(uuid4(), partial(begun.append, number))
        assert begun[-1] == number
