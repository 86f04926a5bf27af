"""Many who ask at once cost what one costs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from api.readiness import SharedLook


@dataclass
class Stores:
    """Answer when they are told to, with how often they were looked at."""

    answer: asyncio.Event = field(default_factory=asyncio.Event)
    num_looks: int = 0

    async def look(self) -> int:
        self.num_looks += 1
        await self.answer.wait()
        return self.num_looks


async def test_those_who_ask_meanwhile_share_a_look_and_later_ones_get_a_new_one() -> None:
    stores = Stores()
    shared = SharedLook(stores.look)

    asking = [asyncio.create_task(shared()) for _ in range(1_000)]
    await asyncio.sleep(0)
    stores.answer.set()

    assert set(await asyncio.gather(*asking)) == {1}
    assert await shared() == 2


async def test_who_leaves_takes_no_answer_from_the_others() -> None:
    stores = Stores()
    shared = SharedLook(stores.look)
    first, second = (asyncio.create_task(shared()) for _ in range(2))
    await asyncio.sleep(0)

    first.cancel()
    stores.answer.set()

    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second == 1
