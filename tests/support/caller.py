"""A caller, as authentication finds it."""

from __future__ import annotations

from uuid import uuid4

from store.tenants import ApiKey
from tasks.limits import NO_LIMITS


def new_caller(key_id: str = "key", *, is_live: bool = True) -> ApiKey:
    """Of a tenant of its own, without scopes and limits."""
    return ApiKey(
        key_id=key_id,
        hash=b"",
        pepper_version=1,
        scopes=frozenset(),
        is_live=is_live,
        tenant_id=uuid4(),
        tiers=(),
        default_tier="default",
        on_disconnect=None,
        attach_retries=True,
        limits=NO_LIMITS,
    )
