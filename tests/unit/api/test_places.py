from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from uuid import uuid4

import pytest

from api.limits.places import Places
from store.tenants import ApiKey
from tasks.errors import RateLimitExceeded
from tasks.limits import NO_LIMITS


def _key(key_id: str) -> ApiKey:
    return ApiKey(
        key_id=key_id,
        hash=b"",
        pepper_version=1,
        scopes=frozenset(),
        is_live=True,
        tenant_id=uuid4(),
        tiers=(),
        default_tier="default",
        on_disconnect=None,
        attach_retries=True,
        limits=NO_LIMITS,
    )


def test_neither_key_nor_tenant_takes_more_than_its_places_and_none_is_lost() -> None:
    places = Places(max_tenant=3, max_key=2)
    first = _key("first")
    second = replace(first, key_id="second")
    stranger = _key("stranger")

    for _ in range(2):
        with ExitStack() as held:
            held.enter_context(places.take(first))
            held.enter_context(places.take(first))
            with pytest.raises(RateLimitExceeded, match="This API key has 2"):
                held.enter_context(places.take(first))
            held.enter_context(places.take(second))
            with pytest.raises(RateLimitExceeded, match="Your organization has 3"):
                held.enter_context(places.take(second))
            held.enter_context(places.take(stranger))


def test_what_nobody_holds_is_not_remembered() -> None:
    places = Places(max_tenant=1, max_key=1)
    with places.take(_key("a")):
        pass
    assert not places._of_tenants
    assert not places._of_keys
