from __future__ import annotations

from contextlib import ExitStack
from uuid import uuid4

import pytest

from api.files.slots import TransferSlots
from tasks.errors import RateLimitExceeded, ServiceUnavailable


def test_one_tenant_can_not_take_all_slots_and_none_is_lost() -> None:
    slots = TransferSlots(max_all=3, max_tenant=2)
    first, second = uuid4(), uuid4()

    with ExitStack() as held:
        for tenant in (first, first, second):
            held.enter_context(slots.take(tenant))
        with pytest.raises(RateLimitExceeded):
            held.enter_context(slots.take(first))
        with pytest.raises(ServiceUnavailable):
            held.enter_context(slots.take(second))

    with ExitStack() as held:
        for tenant in (first, second, second):
            held.enter_context(slots.take(tenant))
