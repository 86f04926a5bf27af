"""What lies around the jobs of big tables: keys, webhooks, batches, files, uploads and dead workers
of a year. `benchmarks.big_tables` writes the jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from store.pools import DictConnection
from tasks.ids import uuid7

# A tenth of all is open: endpoints with something to send, batches that go on, uploads in flight.
# The newest deliveries, batches and files are the flood's, as its jobs are.
_FILL: Sequence[str] = (
    """
    INSERT INTO api_keys (key_id, tenant_id, name, hash, pepper_version, last4, scopes)
    SELECT 'key' || n, coalesce((%(light)s::uuid[])[n], %(flood)s), 'key', '', 1, 'last', '{}'
    FROM generate_series(1, %(num)s::int / 10) AS n
    """,
    """
    INSERT INTO webhook_endpoints (id, tenant_id, url, event_types, name, secret, secret_hint)
    SELECT uuidv7(interval '-1 day' + n * interval '1 ms'), tenant_id, 'https://example.com/',
        ARRAY['response.completed'], 'hook', ''::bytea, ''
    FROM unnest(%(light)s::uuid[]) WITH ORDINALITY AS t (tenant_id, n)
    UNION ALL SELECT %(endpoint)s, %(flood)s, 'https://example.com/', '{}', 'hook', '',
        ''
    """,
    """
    INSERT INTO webhook_deliveries (endpoint_id, tenant_id, event_id, type, object_id, created_at,
        next_attempt_at, delivered_at)
    SELECT %(endpoint)s, %(flood)s, gen_random_uuid(), 'response.completed', 'resp_' || n,
        now() - n * interval '1 s' * (86400.0 * 20 / %(num)s::int),
        CASE WHEN n %% 10 = 0 THEN now() + interval '1 hour' END,
        CASE WHEN n %% 10 > 0 THEN now() END
    FROM generate_series(1, %(num)s::int) AS n
    """,
    """
    INSERT INTO webhook_deliveries (endpoint_id, tenant_id, event_id, type, object_id)
    SELECT id, tenant_id, gen_random_uuid(), 'response.completed', 'resp_due'
    FROM webhook_endpoints WHERE tenant_id = ANY((%(light)s::uuid[])[:8])
    """,
    """
    INSERT INTO batches (id, tenant_id, api_key_id, endpoint, completion_window, service_tier,
        input_file_id, input_bytes, status, completed_at, expires_at, next_step_at, deleted_at)
    SELECT uuidv7(-n * interval '1 s' * (86400.0 * 20 / %(num)s::int)), %(flood)s, 'key',
        '/v1/chat/completions', '24h', 'batch', %(input)s, 1000, 'completed',
        now() - n * interval '1 s' * (86400.0 * 20 / %(num)s::int), now(), now(),
        CASE WHEN n <= 2 THEN now() END
    FROM generate_series(1, %(num)s::int / 10) AS n
    UNION ALL
    SELECT uuidv7(-n * interval '1 ms'), tenant_id, 'key', '/v1/chat/completions', '24h', 'batch',
        %(input)s, 1000, 'in_progress', NULL, now() + interval '1 day', now() + interval '1 hour',
        NULL::timestamptz
    FROM unnest(%(light)s::uuid[]) WITH ORDINALITY AS t (tenant_id, n)
    UNION ALL
    SELECT %(batch)s, %(flood)s, 'key', '/v1/chat/completions', '24h', 'batch', %(input)s, 1000,
        'in_progress', NULL, now() + interval '1 day', now(), NULL
    """,
    """
    INSERT INTO batch_lines (batch_id, number, custom_id, body, prefix, state, job_id)
    SELECT %(batch)s, n, 'line-' || n, CASE WHEN n %% 2 = 0 THEN '{}'::bytea END, ''::bytea,
        CASE WHEN n %% 2 = 0 THEN 'pending' WHEN n <= 16 THEN 'submitted' ELSE 'over' END,
        CASE WHEN n %% 2 > 0 THEN (SELECT id FROM jobs WHERE status = 'queued' LIMIT 1) END
    FROM generate_series(1, %(num)s::int) AS n
    UNION ALL
    SELECT id, 1, 'line', '{}'::bytea, ''::bytea, 'pending', NULL::uuid FROM batches
    WHERE status = 'in_progress' AND id <> %(batch)s
    """,
    """
    INSERT INTO files (id, tenant_id, purpose, filename, num_bytes, num_parts, status, created_at,
        expires_at, deleted_at, purged_at)
    SELECT uuidv7(-n * interval '1 s'), coalesce((%(light)s::uuid[])[n], %(flood)s), 'user_data',
        'file', 10, 1, 'processed', now() - n * interval '1 s', now() + n * interval '1 s',
        CASE WHEN n > %(num)s::int / 20 THEN now() END,
        CASE WHEN n > %(num)s::int / 20 THEN now() END
    FROM generate_series(1, %(num)s::int / 10) AS n
    UNION ALL SELECT %(input)s, %(flood)s, 'batch', 'file', 10, 1, 'processed', now(), NULL, NULL,
        NULL
    """,
    """
    INSERT INTO file_parts (file_id, number, tenant_id, object_key, num_bytes)
    SELECT id, 1, tenant_id, id::text, 10 FROM files
    """,
    """
    INSERT INTO file_uploads (id, tenant_id, reserved_bytes)
    SELECT uuidv7(-n * interval '1 ms'), tenant_id, 10
    FROM unnest(%(light)s::uuid[]) WITH ORDINALITY AS t (tenant_id, n)
    """,
    """
    INSERT INTO worker_leases (worker_id, hostname, pid, pool, device, models, slots, expires_at)
    SELECT uuidv7(-n * interval '1 ms'), 'host', n, 'default', 'cpu', '{demo}', 4,
        now() - interval '1 hour'
    FROM generate_series(1, 100) AS n
    """,
)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What of them the flood's tenant has: one of each that has very many rows below it."""

    endpoint: UUID  # of most deliveries
    batch: UUID  # with very many lines, half of them pending
    input_file: UUID


def surround(
    owner: DictConnection, flood: UUID, light: Sequence[UUID], *, num: int
) -> Surroundings:
    """`num` deliveries and lines, a tenth as many keys, batches and files."""
    around = Surroundings(endpoint=uuid7(), batch=uuid7(), input_file=uuid7())
    parameters = {
        "flood": flood,
        "light": list(light),
        "num": num,
        "endpoint": around.endpoint,
        "batch": around.batch,
        "input": around.input_file,
    }
    for statement in _FILL:
        owner.execute(statement.encode(), parameters)
    return around
