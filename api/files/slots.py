"""How many transfers run at once: each holds buffers and a file handle for as long as its client
takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from tasks.errors import RateLimitExceeded, ServiceUnavailable


class TransferSlots:
    """Counts one kind of transfer in this process, and how many of them are one tenant's."""

    def __init__(self, max_all: int, max_tenant: int) -> None:
        self._max_all = max_all
        self._max_tenant = max_tenant
        self._taken: Counter[UUID] = Counter()

    @contextmanager
    def take(self, tenant_id: UUID) -> Iterator[None]:
        """Hold a slot. Raises RateLimitExceeded or ServiceUnavailable."""
        if self._taken[tenant_id] >= self._max_tenant:
            raise RateLimitExceeded("Too many of your transfers run at once.")
        if self._taken.total() >= self._max_all:
            raise ServiceUnavailable("Too many transfers run at once.")
        self._taken[tenant_id] += 1
        try:
            yield
        finally:
            self._taken[tenant_id] -= 1
            if not self._taken[tenant_id]:
                del self._taken[tenant_id]
