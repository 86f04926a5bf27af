"""How long a unit of work that fails is left alone."""

from __future__ import annotations

from uuid import UUID

from store.aside import FIRST_S, FORGET_S, MAX_S, Aside

ONE, OTHER = UUID(int=1), UUID(int=2)


class _Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_a_unit_is_left_alone_until_its_time_is_over() -> None:
    clock = _Clock()
    aside = Aside(clock)

    assert aside.add(ONE) == 1
    assert aside.ids() == [ONE]
    clock.now += FIRST_S - 0.01
    assert aside.ids() == [ONE]
    clock.now += 0.01
    assert aside.ids() == []


def test_each_failure_in_a_row_doubles_the_time_up_to_a_limit() -> None:
    clock = _Clock()
    aside = Aside(clock)
    for num, pause_s in enumerate([2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, MAX_S], start=1):
        assert aside.add(ONE) == num

        clock.now += pause_s - 0.01
        assert aside.ids() == [ONE]
        clock.now += 0.01
        assert aside.ids() == []


def test_units_are_left_alone_each_for_itself() -> None:
    clock = _Clock()
    aside = Aside(clock)
    aside.add(ONE)
    aside.add(ONE)
    clock.now += 1
    assert aside.add(OTHER) == 1

    assert aside.ids() == [ONE, OTHER]
    clock.now += FIRST_S
    assert aside.ids() == [ONE]


def test_a_unit_that_did_not_fail_for_an_hour_begins_anew() -> None:
    clock = _Clock()
    aside = Aside(clock)
    aside.add(ONE)

    clock.now += FIRST_S + FORGET_S - 0.01
    aside.ids()
    assert aside.add(ONE) == 2
    clock.now += 2 * FIRST_S + FORGET_S
    aside.ids()
    assert aside.add(ONE) == 1
