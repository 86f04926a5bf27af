"""Settled jobs, written as billing would."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from store.pools import DictConnection
from tasks.ids import uuid7

_ADD = """
INSERT INTO usage (job_id, tenant_id, api_key_id, model, service_tier, status, payer, input_tokens,
    cached_tokens, output_tokens, price_version, amount_micros, currency, created_at, end_user)
SELECT %(job_id)s, %(tenant_id)s, %(key)s, model_name, service_tier, 'completed', 'tenant',
    %(input)s, %(cached)s, %(output)s, version, coalesce(%(amount)s, cost_micros(%(input)s,
    %(cached)s, %(output)s, input_micros, cached_micros, output_micros)), 'USD',
    to_timestamp(%(at)s), %(user)s
FROM prices WHERE model_name = 'tiny' AND service_tier = %(tier)s
RETURNING amount_micros
"""


def add_usage(owner: DictConnection, tenant_id: UUID, *, at: float, **fields: Any) -> int:
    """A settled job that ended at `at`, and what it was charged."""
    row: dict[str, Any] = {
        "job_id": uuid7(),
        "tenant_id": tenant_id,
        "key": "key",
        "input": 100,
        "cached": 30,
        "output": 50,
        "tier": "default",
        "amount": None,
        "at": at,
        "user": None,
        **fields,
    }
    added = owner.execute(_ADD, row).fetchone()
    assert added is not None
    return int(added["amount_micros"])
