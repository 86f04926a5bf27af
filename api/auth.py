"""Who is calling. A key's row is cached for seconds; the secret is compared on every request."""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from api.settings import KEY_CACHE_SIZE, KEY_NEGATIVE_TTL_S, KEY_POSITIVE_TTL_S
from store.api_keys import Scope, hash_key, parse_key_id
from store.pools import AsyncPool
from store.tenants import ApiKey, find_api_key
from tasks.errors import InvalidApiKey, PermissionDenied

_SCHEME = "bearer "
_DUMMY_HASH = bytes(32)


class Authenticator:
    """Checks Authorization headers. One an API process; used on its event loop alone."""

    def __init__(
        self,
        pool: AsyncPool,
        peppers: Mapping[int, bytes],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._peppers = peppers
        self._clock = clock
        self._cache: OrderedDict[str, tuple[float, ApiKey | None]] = OrderedDict()

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

    async def _find(self, key_id: str) -> ApiKey | None:
        cached = self._cache.get(key_id)
        if cached and cached[0] > self._clock():
            self._cache.move_to_end(key_id)
            return cached[1]
        key = await find_api_key(self._pool, key_id)
        ttl = KEY_POSITIVE_TTL_S if key else KEY_NEGATIVE_TTL_S
        self._cache[key_id] = (self._clock() + ttl, key)
        self._cache.move_to_end(key_id)
        while len(self._cache) > KEY_CACHE_SIZE:
            self._cache.popitem(last=False)
        return key

    def _matches(self, key: ApiKey | None, text: str) -> bool:
        """An unknown id takes as long as a known one, so that ids can't be guessed by timing."""
        pepper = self._peppers.get(key.pepper_version) if key else None
        digest = hash_key(pepper or b"-", text)
        expected = key.hash if key and pepper else _DUMMY_HASH
        return hmac.compare_digest(digest, expected)


def require(key: ApiKey, scope: Scope) -> None:
    """Raise PermissionDenied unless the key has the scope."""
    if scope not in key.scopes:
        raise PermissionDenied(f"This API key lacks the scope {scope.value}.")


def _bearer(header: str | None) -> str:
    if header is None:
        raise InvalidApiKey("Missing API key. Send it as 'Authorization: Bearer <key>'.")
    if not header.lower().startswith(_SCHEME):
        raise InvalidApiKey("The Authorization header must be 'Bearer <key>'.")
    return header[len(_SCHEME) :].strip()
