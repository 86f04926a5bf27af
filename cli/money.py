"""Money as people write it."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from cli.errors import CommandError

_MICROS = 1_000_000


def to_micros(amount: str) -> int:
    """`12.50` as micros. Raises CommandError for anything that isn't a plain positive amount."""
    try:
        micros = Decimal(amount) * _MICROS
    except InvalidOperation:
        raise CommandError(f"{amount!r} is no amount: write it like 12.50") from None
    if not micros.is_finite() or micros <= 0 or micros != micros.to_integral_value():
        raise CommandError(f"{amount!r} is no amount: positive, with at most 6 decimals")
    return int(micros)


def from_micros(micros: int) -> str:
    """Micros as an amount with the decimals it needs, two at least."""
    sign, number = ("-" if micros < 0 else ""), abs(micros)
    decimals = f"{number % _MICROS:06d}".rstrip("0").ljust(2, "0")
    return f"{sign}{number // _MICROS}.{decimals}"
