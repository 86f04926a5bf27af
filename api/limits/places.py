"""How many requests of one tenant, and of one key, this process has open at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar
from uuid import UUID

from store.tenants import ApiKey
from tasks.errors import RateLimitExceeded

K = TypeVar("K")


class Places:
    """Counts one kind of request. Used on the event loop alone."""

    def __init__(self, *, max_tenant: int, max_key: int) -> None:
        self._max_tenant = max_tenant
        self._max_key = max_key
        self._of_tenants: Counter[UUID] = Counter()
        self._of_keys: Counter[str] = Counter()

    @contextmanager
    def take(self, key: ApiKey) -> Iterator[None]:
        """Hold a place. Raises RateLimitExceeded."""
        if self._of_tenants[key.tenant_id] >= self._max_tenant:
            raise RateLimitExceeded(_message("Your organization", self._max_tenant))
        if self._of_keys[key.key_id] >= self._max_key:
            raise RateLimitExceeded(_message("This API key", self._max_key))
        self._of_tenants[key.tenant_id] += 1
        self._of_keys[key.key_id] += 1
        try:
            yield
        finally:
            _give_back(self._of_tenants, key.tenant_id)
            _give_back(self._of_keys, key.key_id)


def _give_back(counts: Counter[K], owner: K) -> None:
    counts[owner] -= 1
    if not counts[owner]:
        del counts[owner]


def _message(owner: str, limit: int) -> str:
    return f"{owner} has {limit:,} requests open at once, and that is the limit. Close some."
