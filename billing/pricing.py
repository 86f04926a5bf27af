"""What a job costs. Pure: integers in, integers out, no imports of ours.

Prices are micros of a currency unit per million tokens, so a job's exact cost is a whole number of
millionths of a micro. It is rounded up to a micro once a job, never once a token or a part.
The same formula stands in SQL as `cost_micros()` (migrations, money.sql); a test holds them equal.
"""

from __future__ import annotations

from typing import Protocol

TOKENS_PER_PRICE = 1_000_000


class PriceLine(Protocol):
    """One line of a price book, or what is frozen in a job. Micros per million tokens."""

    @property
    def input_micros(self) -> int: ...
    @property
    def cached_micros(self) -> int: ...
    @property
    def output_micros(self) -> int: ...


def cost_micros(
    *, input_tokens: int, cached_tokens: int, output_tokens: int, prices: PriceLine
) -> int:
    """What these tokens cost. `cached_tokens` are those of the input that a cache served.

    Never more than `worst_case_micros` of the same input and of any larger output: each term grows
    with its count, and rounding up keeps the order. So a charge fits its reservation.
    """
    assert 0 <= cached_tokens <= input_tokens, (cached_tokens, input_tokens)
    exact = (
        (input_tokens - cached_tokens) * prices.input_micros
        + cached_tokens * prices.cached_micros
        + output_tokens * prices.output_micros
    )
    return _round_up(exact)


def worst_case_micros(*, input_tokens: int, max_output_tokens: int, prices: PriceLine) -> int:
    """What a job can cost at most: what admission reserves.

    Nobody knows at admission how much a cache will serve, and a price book may ask more for cached
    input than for fresh, so the input is taken at the dearer of the two.
    """
    dearest_input = max(prices.input_micros, prices.cached_micros)
    return _round_up(input_tokens * dearest_input + max_output_tokens * prices.output_micros)


def _round_up(exact: int) -> int:
    return -(-exact // TOKENS_PER_PRICE)
