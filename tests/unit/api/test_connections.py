from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial

import pytest

from api.server.bounds import AT_ONCE_S, Timeouts
from api.server.connections import Connections
from api.server.refusals import Refusals
from tests.support.waiting import until

NUM_LATE = 40
TICK_S = AT_ONCE_S / 2  # what one takes
AT_ONCE = 4  # more than that have taken too long


@dataclass(eq=False)
class Peers:
    """Connections that are all late, and a clock that goes on only while one is ended."""

    now: float = 0.0
    ended: list[int] = field(default_factory=list)
    fails: frozenset[int] = frozenset()

    def clock(self) -> float:
        return self.now


@dataclass(eq=False)
class Late:
    peers: Peers
    number: int

    def let_go(self) -> None:
        raise AssertionError("there is room")

    def tick(self, now: float) -> None:
        assert now == self.peers.now
        self.peers.now += TICK_S
        self.peers.ended.append(self.number)
        if self.number in self.peers.fails:
            raise RuntimeError("it can't be ended")


def _open(peers: Peers) -> Connections:
    connections = Connections(NUM_LATE, timeouts=Timeouts(tick_s=0.001), clock=peers.clock)
    for number in range(NUM_LATE):
        connections.note_waiting(Late(peers, number))
    return connections


def _end(peers: Peers, number: int) -> None:
    Late(peers, number).tick(peers.now)


async def test_others_have_their_turn_among_thousands_that_are_late_together() -> None:
    peers, most, before = Peers(), 0, 0
    _open(peers)

    while len(peers.ended) < NUM_LATE:
        await asyncio.sleep(0)
        most, before = max(most, len(peers.ended) - before), len(peers.ended)

    assert 0 < most <= AT_ONCE
    assert peers.ended[:NUM_LATE] == list(range(NUM_LATE))


@pytest.mark.parametrize("bad", [0, AT_ONCE - 1, NUM_LATE - 1])
async def test_one_that_can_not_be_ended_holds_up_no_other(bad: int) -> None:
    peers = Peers(fails=frozenset({bad}))
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # it would log a traceback
    _open(peers)

    await until(lambda: len(peers.ended) >= 2 * NUM_LATE, what="a second look at all")

    assert sorted(peers.ended[: 2 * NUM_LATE]) == sorted([*range(NUM_LATE)] * 2)


async def test_thousands_who_are_refused_together_are_ended_behind_one_another() -> None:
    peers, most, before = Peers(), 0, 0
    refusals = Refusals(peers.clock)

    for number in range(NUM_LATE):
        refusals.add(partial(_end, peers, number))
    while len(peers.ended) < NUM_LATE:
        most, before = max(most, len(peers.ended) - before), len(peers.ended)
        await asyncio.sleep(0)

    assert 0 < most <= AT_ONCE
    assert peers.ended == list(range(NUM_LATE))


async def test_one_who_is_refused_alone_does_not_wait() -> None:
    peers = Peers()
    refusals = Refusals(peers.clock)

    refusals.add(partial(_end, peers, 0))

    assert peers.ended == [0]


async def test_a_refusal_that_fails_holds_up_no_other() -> None:
    peers = Peers(fails=frozenset({AT_ONCE + 1}))
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    refusals = Refusals(peers.clock)

    for number in range(NUM_LATE):
        refusals.add(partial(_end, peers, number))
    await until(lambda: len(peers.ended) >= NUM_LATE, what="the end of all")

    assert peers.ended == list(range(NUM_LATE))
