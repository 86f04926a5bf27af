"""Who is calling. A key's row is cached for seconds; the secret is compared on every request."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from uuid import UUID

from api.settings import KEY_CACHE_SIZE, KEY_NEGATIVE_TTL_S, KEY_POSITIVE_TTL_S
from store.api_keys import ALL, Scope, hash_key, parse_key_id
from store.pools import AsyncPool
from store.tenants import ApiKey, find_api_key
from tasks.errors import InvalidApiKey, PermissionDenied

_SCHEME = "bearer "
_DUMMY_HASH = bytes(32)
# Questions for keys under way at once: a flood of made-up ids leaves connections to admission.
MAX_LOOKUPS = 3

_Cache = OrderedDict[str, tuple[float, ApiKey | None]]


class Authenticator:
    """Checks Authorization headers. One an API process; used on its event loop alone."""

    def __init__(
        self,
        pool: AsyncPool,
        peppers: Mapping[int, bytes],
        clock: Callable[[], float] = time.monotonic,
        *,
        max_keys: int = KEY_CACHE_SIZE,
        max_lookups: int = MAX_LOOKUPS,
    ) -> None:
        self._pool = pool
        self._peppers = peppers
        self._clock = clock
        self._max_keys = max_keys
        # Apart, so that ids which anybody may make up push no key out.
        self._known: _Cache = OrderedDict()
        self._unknown: _Cache = OrderedDict()
        self._lookups = asyncio.Semaphore(max_lookups)
        # One question for all who wait for the same answer, so that a thousand requests that come
        # when their key is new, or no longer fresh, leave connections to admission too.
        self._asking: dict[str, asyncio.Task[ApiKey | None]] = {}

    async def authenticate(self, header: str | None) -> ApiKey:
        """The key behind a header. Raises InvalidApiKey."""
        text = _bearer(header)
        key_id = parse_key_id(text)
        if key_id is None:  # not one of our keys: no query for noise
            raise InvalidApiKey
        key = await self._find(key_id)
        if not self._matches(key, text) or key is None or not key.is_live:
            raise InvalidApiKey
        return key

    def presumed_tenant(self, header: str | None) -> UUID | None:
        """Whose request this seems to be: the tenant whose key was good before, fresh or not."""
        try:
            text = _bearer(header)
        except InvalidApiKey:
            return None
        _, key = self._known.get(parse_key_id(text) or "", (0.0, None))
        return key.tenant_id if key and self._matches(key, text) else None

    async def _find(self, key_id: str) -> ApiKey | None:
        now = self._clock()
        for cache in (self._known, self._unknown):
            cached = cache.get(key_id)
            if cached and cached[0] > now:
                cache.move_to_end(key_id)
                return cached[1]
        asking = self._asking.get(key_id)
        if asking is None:
            asking = self._asking[key_id] = asyncio.create_task(self._ask(key_id))
            asking.add_done_callback(lambda _: self._asking.pop(key_id))
        return await asyncio.shield(asking)  # whoever leaves takes it from nobody else

    async def _ask(self, key_id: str) -> ApiKey | None:
        # Whose key was good before doesn't wait behind made-up ones.
        async with nullcontext() if key_id in self._known else self._lookups:
            key = await find_api_key(self._pool, key_id)
        self._remember(key_id, key)
        return key

    def _remember(self, key_id: str, key: ApiKey | None) -> None:
        ttl_s = KEY_POSITIVE_TTL_S if key else KEY_NEGATIVE_TTL_S
        cache, other = (self._known, self._unknown) if key else (self._unknown, self._known)
        other.pop(key_id, None)
        cache[key_id] = (self._clock() + ttl_s, key)
        cache.move_to_end(key_id)
        while len(cache) > self._max_keys:
            cache.popitem(last=False)

    def _matches(self, key: ApiKey | None, text: str) -> bool:
        """An unknown id takes as long as a known one, so that ids can't be guessed by timing."""
        pepper = self._peppers.get(key.pepper_version) if key else None
        digest = hash_key(pepper or b"-", text)
        expected = key.hash if key and pepper else _DUMMY_HASH
        return hmac.compare_digest(digest, expected)


def require(key: ApiKey, scope: Scope) -> None:
    """Raise PermissionDenied unless the key has the scope."""
    if scope not in key.scopes and ALL not in key.scopes:
        raise PermissionDenied(f"This API key lacks the scope {scope.value}.")


def _bearer(header: str | None) -> str:
    if header is None:
        raise InvalidApiKey("Missing API key. Send it as 'Authorization: Bearer <key>'.")
    if not header.lower().startswith(_SCHEME):
        raise InvalidApiKey("The Authorization header must be 'Bearer <key>'.")
    return header[len(_SCHEME) :].strip()
