from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest

from api.limits.places import Places
from tasks.errors import RateLimitExceeded
from tests.support.caller import new_caller


def test_neither_key_nor_tenant_takes_more_than_its_places_and_none_is_lost() -> None:
    places = Places(max_tenant=3, max_key=2)
    first = new_caller("first")
    second = replace(first, key_id="second")
    stranger = new_caller("stranger")

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
    with places.take(new_caller("a")):
        pass
    assert not places._of_tenants
    assert not places._of_keys
