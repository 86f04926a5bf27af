"""Where rate limits will stand. Admission asks a limiter before it writes anything."""

from __future__ import annotations

from typing import Protocol

from store.tenants import ApiKey


class RateLimiter(Protocol):
    """Decides whether a tenant may ask for this much now."""

    async def check(self, key: ApiKey, *, num_tokens: int) -> None:
        """Raise RateLimitExceeded, or take the tokens."""
        ...


class NoLimits:
    """Lets everything through; credit reservations still bound what a tenant can spend."""

    async def check(self, key: ApiKey, *, num_tokens: int) -> None:
        return None
