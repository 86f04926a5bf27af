"""Prices: exact, rounded up once, and never above what was reserved."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from billing.pricing import cost_micros, worst_case_micros
from store.admission import FrozenPrices
from tests.support.rows import frozen_prices

TOKENS = st.integers(0, 10_000_000)
MICROS = st.integers(0, 10**10)
PRICES = st.builds(frozen_prices, MICROS, MICROS, MICROS)


@st.composite
def inputs(draw: st.DrawFn) -> tuple[int, int]:
    """(input tokens, of them cached)."""
    num_input = draw(TOKENS)
    return num_input, draw(st.integers(0, num_input))


def test_a_job_costs_the_sum_of_its_parts() -> None:
    prices = frozen_prices(500_000, 100_000, 2_000_000)

    cost = cost_micros(input_tokens=1_000, cached_tokens=400, output_tokens=200, prices=prices)

    assert cost == 300 + 40 + 400


def test_a_fraction_of_a_micro_is_rounded_up_once_a_job() -> None:
    prices = frozen_prices(1, 1, 1)

    assert cost_micros(input_tokens=1, cached_tokens=0, output_tokens=0, prices=prices) == 1
    assert cost_micros(input_tokens=500, cached_tokens=100, output_tokens=500, prices=prices) == 1


def test_no_tokens_cost_nothing() -> None:
    prices = frozen_prices(10**9, 10**9, 10**9)

    assert cost_micros(input_tokens=0, cached_tokens=0, output_tokens=0, prices=prices) == 0


@given(inputs(), TOKENS, PRICES)
def test_a_cost_is_the_exact_one_rounded_up(
    tokens: tuple[int, int], output_tokens: int, prices: FrozenPrices
) -> None:
    num_input, cached = tokens

    cost = cost_micros(
        input_tokens=num_input, cached_tokens=cached, output_tokens=output_tokens, prices=prices
    )

    exact = Fraction(
        (num_input - cached) * prices.input_micros
        + cached * prices.cached_micros
        + output_tokens * prices.output_micros,
        1_000_000,
    )
    assert 0 <= cost - exact < 1


@given(inputs(), TOKENS, TOKENS, PRICES)
def test_a_charge_never_exceeds_its_reservation(
    tokens: tuple[int, int], output_tokens: int, more: int, prices: FrozenPrices
) -> None:
    num_input, cached = tokens

    cost = cost_micros(
        input_tokens=num_input, cached_tokens=cached, output_tokens=output_tokens, prices=prices
    )
    reserved = worst_case_micros(
        input_tokens=num_input, max_output_tokens=output_tokens + more, prices=prices
    )

    assert cost <= reserved


@given(inputs(), TOKENS, TOKENS, PRICES)
def test_more_output_never_costs_less(
    tokens: tuple[int, int], output_tokens: int, more: int, prices: FrozenPrices
) -> None:
    num_input, cached = tokens

    costs = [
        cost_micros(
            input_tokens=num_input, cached_tokens=cached, output_tokens=count, prices=prices
        )
        for count in (output_tokens, output_tokens + more)
    ]

    assert costs == sorted(costs)
