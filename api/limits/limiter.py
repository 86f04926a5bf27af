"""Charges requests against their tenants' rate limits. Tenants without limits cost nothing."""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

from api.limits.answers import final_refusal, refusal
from api.limits.counters import Counters
from api.limits.refusals import Refusals
from store.tenants import ApiKey
from tasks.limits import Amounts, Answer, Standing


class RateLimiter(Protocol):
    """Decides whether a tenant may ask for this much now. None: it has no limits."""

    async def take(self, key: ApiKey, num_tokens: int) -> Standing | None:
        """Charge one request and its tokens, or raise RateLimitExceeded and charge neither."""
        ...

    async def give_back(self, key: ApiKey, num_tokens: int) -> Standing | None:
        """Undo a charge that made no job."""
        ...

    async def look(self, key: ApiKey) -> Standing | None:
        """How a tenant's limits stand."""
        ...

    async def note_refusal(self, key: ApiKey, request_hash: bytes, job_id: UUID) -> None:
        """Remember a request that is to come again, by the job that it would have been."""
        ...

    async def last_refusal(self, key: ApiKey, request_hash: bytes) -> UUID | None:
        """What was last noted of such a request, for some minutes."""
        ...


class NoLimits:
    """Lets everything through; credit reservations still bound what a tenant can spend."""

    async def take(self, key: ApiKey, num_tokens: int) -> Standing | None:
        return None

    async def give_back(self, key: ApiKey, num_tokens: int) -> Standing | None:
        return None

    async def look(self, key: ApiKey) -> Standing | None:
        return None

    async def note_refusal(self, key: ApiKey, request_hash: bytes, job_id: UUID) -> None:
        return None

    async def last_refusal(self, key: ApiKey, request_hash: bytes) -> UUID | None:
        return None


class TenantLimits:
    """Holds tenants to their limits. One an API process."""

    def __init__(self, counters: Counters, refusals: Refusals) -> None:
        self._counters = counters
        self._refusals = refusals

    async def take(self, key: ApiKey, num_tokens: int) -> Standing | None:
        limit = key.limits.tokens
        if limit is not None and num_tokens > limit:
            standing = await self.look(key)
            assert standing is not None
            raise final_refusal(standing, num_tokens)
        answer = await self._count(key, Amounts(1, num_tokens))
        if answer is not None and answer.refused_by is not None:
            raise refusal(answer, num_tokens)
        return answer.standing if answer else None

    async def give_back(self, key: ApiKey, num_tokens: int) -> Standing | None:
        answer = await self._count(key, Amounts(-1, -num_tokens))
        return answer.standing if answer else None

    async def look(self, key: ApiKey) -> Standing | None:
        answer = await self._count(key, Amounts(0, 0))
        return answer.standing if answer else None

    async def note_refusal(self, key: ApiKey, request_hash: bytes, job_id: UUID) -> None:
        if not self._counters.is_away:
            await self._refusals.note(request_hash, job_id)

    async def last_refusal(self, key: ApiKey, request_hash: bytes) -> UUID | None:
        if key.limits.is_none or self._counters.is_away:
            return None
        return await self._refusals.latest(request_hash)

    async def _count(self, key: ApiKey, amounts: Amounts) -> Answer | None:
        if key.limits.is_none:
            return None
        return await self._counters.take(key.tenant_id, key.limits, amounts)
