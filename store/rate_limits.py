"""What settled jobs leave over of the tokens that their tenants' rate limits reserved for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from store.pools import DictConnection
from tasks.limits import Limits

# Lines of batches reserved nothing. Who doesn't pay for a job hasn't used its tokens either.
_UNUSED = """
SELECT t.id AS tenant_id, t.requests_per_min, t.tokens_per_min,
    sum(j.input_tokens + j.max_output_tokens * j.num_choices::bigint
        - CASE WHEN o.payer = 'tenant' THEN o.input_tokens + o.output_tokens ELSE 0 END)::bigint
        AS num_tokens
FROM job_outcomes o JOIN jobs j ON j.id = o.job_id JOIN tenants t ON t.id = o.tenant_id
WHERE o.job_id = ANY(%s) AND j.batch_id IS NULL AND t.tokens_per_min IS NOT NULL
GROUP BY t.id
"""


@dataclass(frozen=True, slots=True)
class UnusedTokens:
    """Of some jobs of a tenant, together."""

    tenant_id: UUID
    limits: Limits
    num_tokens: int


def unused_tokens(connection: DictConnection, job_ids: Sequence[UUID]) -> list[UnusedTokens]:
    """What these settled jobs reserved and didn't use, by tenant."""
    rows = connection.execute(_UNUSED, (list(job_ids),)).fetchall()
    return [
        UnusedTokens(
            row["tenant_id"],
            Limits(row["requests_per_min"], row["tokens_per_min"]),
            row["num_tokens"],
        )
        for row in rows
        if row["num_tokens"] > 0
    ]
