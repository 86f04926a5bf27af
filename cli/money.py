"""Money as people write it."""

from __future__ import annotations

from decimal import Decimal

from cli.errors import MisuseError

_MICROS = 1_000_000
_MOST = 10**15  # micros: sums of many still fit into what columns hold


def to_micros(amount: str) -> int:
    """`12.50` as micros. Raises MisuseError for anything that isn't a plain positive amount."""
    try:
        micros = Decimal(amount) * _MICROS
    except ArithmeticError:
        raise MisuseError(f"{amount!r} is no amount: write it like 12.50") from None
    if not micros.is_finite() or micros <= 0 or micros != micros.to_integral_value():
        raise MisuseError(f"{amount!r} is no amount: positive, with at most 6 decimals")
    if micros > _MOST:
        raise MisuseError(f"{amount!r} is too much: {_MOST // _MICROS} at most")
    return int(micros)


def from_micros(micros: int) -> str:
    """Micros as an amount with the decimals it needs, two at least."""
    sign, number = ("-" if micros < 0 else ""), abs(micros)
    decimals = f"{number % _MICROS:06d}".rstrip("0").ljust(2, "0")
    return f"{sign}{number // _MICROS}.{decimals}"
