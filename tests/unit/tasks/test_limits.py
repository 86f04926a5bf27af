"""The sums behind rate limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.limits import (
    MAX_LIMIT,
    NO_LIMITS,
    PERIOD_S,
    Amounts,
    Answer,
    Dimension,
    Limits,
    Meter,
    Standing,
    parse_answer,
    take,
    take_arguments,
)

NOTHING = Amounts(0, 0)


def test_a_limit_lets_its_number_through_at_once_and_then_one_each_part_of_a_minute() -> None:
    limits, used = Limits(requests=7), NOTHING
    for left in range(6, -1, -1):
        answer = take(limits, used, 0.0, Amounts(1, 0))
        assert answer.refused_by is None
        assert answer.standing.requests is not None
        assert answer.standing.requests.remaining == left
        used = answer.standing.used

    assert take(limits, used, 60 / 7 - 0.001, Amounts(1, 0)).refused_by is Dimension.REQUESTS
    assert take(limits, used, 60 / 7, Amounts(1, 0)).refused_by is None


def test_a_limit_of_another_period_comes_back_in_that_period() -> None:
    limits = Limits(requests=10, tokens=100, period_s=3_600.0)

    answer = take(limits, Amounts(10, 100), 359.0, Amounts(1, 0))

    requests, tokens = answer.standing.requests, answer.standing.tokens
    assert requests is not None
    assert tokens is not None
    assert answer.refused_by is Dimension.REQUESTS
    assert requests.wait_s(1) == pytest.approx(1.0)
    assert (requests.reset_s, tokens.reset_s) == pytest.approx((3_241.0, 3_241.0))
    later = take(limits, answer.standing.used, 1.0, Amounts(1, 0))
    assert later.refused_by is None
    assert later.standing.requests is not None
    assert later.standing.requests.used == pytest.approx(10.0)
    assert later.standing.requests.period_s == 3_600.0


def test_a_refusal_takes_from_neither_limit() -> None:
    limits = Limits(requests=10, tokens=100)

    answer = take(limits, Amounts(3, 50), 0.0, Amounts(1, 51))

    assert answer.refused_by is Dimension.TOKENS
    assert answer.standing.used == (3, 50)


@pytest.mark.parametrize(
    ("tokens_used", "refused_by"),
    [(85, Dimension.REQUESTS), (90, Dimension.REQUESTS), (95, Dimension.TOKENS)],
)
def test_of_two_refusals_the_one_that_takes_longer_is_named(
    tokens_used: float, refused_by: Dimension
) -> None:
    limits = Limits(requests=10, tokens=100)  # one request comes back in 6 s, 10 tokens as well

    assert take(limits, Amounts(10, tokens_used), 0.0, Amounts(1, 20)).refused_by is refused_by


def test_what_is_not_limited_is_not_counted() -> None:
    answer = take(Limits(tokens=100), Amounts(5, 0), 0.0, Amounts(1, 10))

    assert answer.standing.requests is None
    assert answer.standing.used == (0, 10)


def test_giving_back_never_leaves_more_than_the_limit() -> None:
    answer = take(Limits(tokens=100), Amounts(0, 30), 6.0, Amounts(0, -50))

    assert answer.refused_by is None
    assert answer.standing.tokens == Meter(100, 0.0)


def test_a_lowered_limit_makes_nobody_wait_longer_than_a_minute() -> None:
    answer = take(Limits(requests=10), Amounts(1_000, 0), 0.0, Amounts(1, 0))

    assert answer.standing.requests is not None
    assert answer.standing.requests.wait_s(10) == PERIOD_S


@pytest.mark.parametrize(
    ("limits", "sent"),
    [
        (Limits(requests=3, tokens=40), (60_000_000, 3, 40, 1, 20)),
        (Limits(tokens=40), (60_000_000, 0, 40, 1, 20)),
        (Limits(requests=3), (60_000_000, 3, 0, 1, 20)),
    ],
)
def test_redis_is_told_limits_by_their_number_or_as_none(
    limits: Limits, sent: tuple[int, ...]
) -> None:
    assert take_arguments(limits, Amounts(1, 20)) == sent


@pytest.mark.parametrize(
    ("refused", "refused_by"), [(0, None), (1, Dimension.REQUESTS), (2, Dimension.TOKENS)]
)
def test_what_redis_says_is_understood(refused: int, refused_by: Dimension | None) -> None:
    answer = parse_answer(Limits(requests=3, tokens=40), [refused, b"1.5", b"20"])

    assert answer == Answer(Standing(Meter(3, 1.5), Meter(40, 20.0)), refused_by)


def test_one_limit_is_enough_to_be_limited() -> None:
    assert NO_LIMITS.is_none is True
    assert Limits(requests=1).is_none is False
    assert Limits(tokens=1).is_none is False
    assert Limits(requests=1, tokens=1).is_none is False


def test_the_highest_limit_is_postgres_highest_integer() -> None:
    assert MAX_LIMIT == 2_147_483_647


@pytest.mark.parametrize("limit", [1, 3, 7, 60, 999_983, MAX_LIMIT])
def test_the_whole_limit_can_be_asked_for_at_once(limit: int) -> None:
    assert take(Limits(tokens=limit), NOTHING, 0.0, Amounts(1, limit)).refused_by is None
    assert take(Limits(tokens=limit), NOTHING, 0.0, Amounts(1, limit + 1)).refused_by


@given(
    limit=st.integers(1, 2**31 - 1),
    share_used=st.floats(0, 1),
    share_asked=st.floats(0, 1),
)
def test_who_waits_as_long_as_told_is_let_through(
    limit: int, share_used: float, share_asked: float
) -> None:
    used, amount = Amounts(0, share_used * limit), Amounts(1, max(1, int(share_asked * limit)))
    limits = Limits(tokens=limit)
    standing = take(limits, used, 0.0, NOTHING).standing
    assert standing.tokens is not None
    wait_s = standing.tokens.wait_s(amount.tokens)

    assert 0 <= wait_s <= PERIOD_S * (1 + 1e-9)
    assert take(limits, used, wait_s, amount).refused_by is None
    assert (wait_s == 0) == (amount.tokens + used.tokens <= limit)


@given(
    limit=st.integers(1, 10**6),
    steps=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 10**6)), max_size=60),
)
def test_no_stretch_of_time_gets_more_than_the_limit_and_what_came_back(
    limit: int, steps: list[tuple[float, int]]
) -> None:
    used, elapsed_s, passed = NOTHING, 0.0, 0
    for pause_s, amount in steps:
        answer = take(Limits(tokens=limit), used, pause_s, Amounts(1, amount))
        used = answer.standing.used
        elapsed_s += pause_s
        passed += 0 if answer.refused_by else amount

    assert passed <= limit + elapsed_s * limit / PERIOD_S + 1e-3


@given(limit=st.integers(1, 10**6), amounts=st.lists(st.integers(1, 1_000), max_size=40))
def test_remaining_is_what_is_let_through(limit: int, amounts: list[int]) -> None:
    limits, used = Limits(tokens=limit), NOTHING
    for amount in amounts:
        used = take(limits, used, 0.0123, Amounts(1, amount)).standing.used
    standing = take(limits, used, 0.0, NOTHING).standing
    assert standing.tokens is not None
    remaining = standing.tokens.remaining

    assert take(limits, used, 0.0, Amounts(1, remaining + 1)).refused_by is Dimension.TOKENS
    if remaining:
        assert take(limits, used, 0.0, Amounts(1, remaining)).refused_by is None
