"""How log-probabilities are read from a result: bit by bit, since they can be tens of MB."""

from __future__ import annotations

from typing import Any
from uuid import UUID

# Each query reads the whole output from its storage again: few, but of a few MB of memory at most.
LOGPROBS_A_QUERY = 8_192  # tokens
LOGPROBS_A_ROW = 256

# As text: what is read at a time is parsed elsewhere, and not by the driver at once.
LOGPROBS = """
SELECT jsonb_agg(token_id ORDER BY n)::text AS token_ids,
    jsonb_agg(logprob ORDER BY n)::text AS values
FROM job_results r, jsonb_array_elements(r.output) AS choices (c), ROWS FROM (
    jsonb_array_elements(c->%(field)s::text->'token_ids'),
    jsonb_array_elements(c->%(field)s::text->'values')
) WITH ORDINALITY AS tokens (token_id, logprob, n)
WHERE r.job_id = %(job_id)s AND r.tenant_id = %(tenant_id)s AND c->'index' = %(choice)s::text::jsonb
    AND n > %(begin)s AND n <= %(begin)s::bigint + %(num_tokens)s
GROUP BY (n - 1) / %(tokens_a_row)s ORDER BY (n - 1) / %(tokens_a_row)s
"""


def logprobs_query(
    tenant_id: UUID, job_id: UUID, choice: int, *, of_prompt: bool
) -> dict[str, Any]:
    """The parameters of LOGPROBS, but for where it begins."""
    return {
        "job_id": job_id,
        "tenant_id": tenant_id,
        "choice": choice,
        "field": "prompt_logprobs" if of_prompt else "logprobs",
        "num_tokens": LOGPROBS_A_QUERY,
        "tokens_a_row": LOGPROBS_A_ROW,
    }
