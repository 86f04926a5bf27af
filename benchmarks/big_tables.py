"""Tables as a year of traffic and a flood leave them: for tests and benchmarks of what statements
cost then. The owner writes the rows in bulk, with as little in them as constraints allow.

One tenant has nearly all queued jobs; `light` tenants have one each. Finished jobs lie in a year's
partitions, settled. Statistics are those of an ANALYZE.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import LiteralString
from uuid import UUID

from psycopg import sql

from benchmarks.big_surroundings import Surroundings, surround
from store.pools import DictConnection
from store.tenants import create_tenant
from tasks.ids import uuid7
from tasks.queues import lane_for

POOL = "default"
NUM_LIGHT = 1_000  # tenants with one queued job each
NUM_OLD_MONTHS = 12  # whose partitions stand
MAX_AROUND = 1_000_000  # deliveries and lines: their keys are random, and inserting gets slow

_OLD_MONTHS: LiteralString = """
DO $$
DECLARE
    parent text;
    month timestamptz;
BEGIN
    PERFORM set_config('timezone', 'UTC', true);
    FOREACH parent IN ARRAY ARRAY['jobs', 'job_payloads', 'job_results', 'job_attempts',
            'job_outcomes'] LOOP
        FOR i IN 1..{months} LOOP
            month := date_trunc('month', now()) - make_interval(months => i);
            EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)',
                parent || '_p' || to_char(month, 'YYYYMM'), parent, uuid7_floor(month),
                uuid7_floor(month + interval '1 month'));
        END LOOP;
    END LOOP;
END
$$
"""

_LIGHT_TENANTS = """
WITH new AS (
    INSERT INTO tenants (id, name, tiers, default_tier)
    SELECT id, id::text, '{default}', 'default' FROM unnest(%s::uuid[]) AS id RETURNING id
)
INSERT INTO accounts (tenant_id, currency, credit_limit_micros)
SELECT id, 'USD', 1000000000 FROM new
"""

# Serial numbers, ids and owners first: md5 and uuidv7 are dear, and every table needs them.
_QUEUED = """
CREATE TEMPORARY TABLE new_queued AS
SELECT uuidv7(interval '-1 hour' + n * interval '1 ms') AS id, n,
    coalesce(l.tenant_id, %(flood)s) AS tenant_id, coalesce(l.lane, %(lane)s) AS lane
FROM generate_series(1, %(num)s::int) AS n
LEFT JOIN unnest(%(light)s::uuid[], %(lanes)s::int[]) WITH ORDINALITY AS l (tenant_id, lane, nth)
    ON n = nth * %(step)s
"""
_FINISHED = """
CREATE TEMPORARY TABLE new_finished AS
SELECT uuidv7(-at) AS id, n, now() - at AS ended_at, %(flood)s::uuid AS tenant_id
FROM generate_series(1, %(num)s::int) AS n, LATERAL (
    SELECT interval '2 hours' + n * (interval '340 days' / %(num)s::int) AS at) AS t
"""

_JOB_COLUMNS = """id, tenant_id, api_key_id, model, model_requested, pool, service_tier, lane,
    max_fails, deadline_at, hinted_at, hint_count, input_tokens, max_output_tokens, price_version,
    input_price, cached_price, output_price, currency, request_hash, created_at, status"""
# One request in ten is what many send, again and again.
_JOB_VALUES = """tenant_id, 'key', 'demo', 'demo', %(pool)s, 'default', {lane}, 3, {deadline},
    now() - interval '1 minute', 1, 100, 50, 1, 1000000, 250000, 2000000, 'USD',
    CASE WHEN n %% 10 = 0 THEN 'often'::bytea ELSE uuid_send(id) END"""

_FILL: Sequence[tuple[str, str]] = (
    (
        "jobs",
        f"""INSERT INTO jobs ({_JOB_COLUMNS}) SELECT id,
        {_JOB_VALUES.format(lane="lane", deadline="now() + interval '1 d' + n * interval '1 ms'")},
        now() - interval '1 minute', 'queued' FROM new_queued ORDER BY id""",
    ),
    (
        "jobs",
        f"""INSERT INTO jobs ({_JOB_COLUMNS}, attempt, finished_at, started_at, cost_micros,
            cached_tokens, output_tokens)
        SELECT id, {_JOB_VALUES.format(lane="0", deadline="ended_at + interval '1 hour'")},
        ended_at, 'completed', 1, ended_at, ended_at, 200, 0, 50 FROM new_finished ORDER BY id""",
    ),
    (
        "job_payloads",
        """INSERT INTO job_payloads (job_id, tenant_id, request, prompt_token_ids, sampling)
        SELECT id, tenant_id, '{}', '', '{}' FROM new_queued ORDER BY id""",
    ),
    (
        "job_results",
        """INSERT INTO job_results (job_id, tenant_id, output, last_seq, event_log, created_at)
        SELECT id, tenant_id, '[]', 52,
            '\\x00', ended_at
        FROM new_finished ORDER BY id""",
    ),
    (
        "job_attempts",
        """INSERT INTO job_attempts (job_id, attempt, tenant_id, worker_id, ended_at, outcome)
        SELECT id, 1, tenant_id, id, ended_at, 'ok' FROM new_finished ORDER BY id""",
    ),
    (
        "job_outcomes",
        """INSERT INTO job_outcomes (job_id, tenant_id, api_key_id, model, service_tier, status,
            payer, attempt, input_tokens, cached_tokens, output_tokens, price_version, input_price,
            cached_price, output_price, currency, created_at, settled_at)
        SELECT id, tenant_id, 'key', 'demo', 'default', 'completed', 'tenant', 1, 100, 0, 50, 1,
            1000000, 250000, 2000000, 'USD', ended_at, ended_at FROM new_finished ORDER BY id""",
    ),
    (
        "reservations",
        """INSERT INTO reservations (job_id, tenant_id, amount_micros, state, settled_micros,
            created_at, resolved_at)
        SELECT id, tenant_id, 200, 'settled', 200, ended_at, ended_at FROM new_finished
        UNION ALL
        SELECT id, tenant_id, 200, 'held', NULL, now() - interval '1 minute', NULL
        FROM new_queued""",
    ),
    (
        "usage",
        """INSERT INTO usage (job_id, tenant_id, api_key_id, model, service_tier, status, payer,
            input_tokens, cached_tokens, output_tokens, price_version, amount_micros, currency,
            created_at)
        SELECT id, tenant_id, 'key', 'demo', 'default', 'completed', 'tenant', 100, 0, 50, 1, 200,
            'USD', ended_at FROM new_finished ORDER BY id""",
    ),
    (
        "ledger_entries",
        """INSERT INTO ledger_entries (kind, tenant_id, job_id, debit_account, credit_account,
            amount_micros, currency, price_version, idem_key, created_at)
        SELECT 'usage', tenant_id, id, 'tenant:' || tenant_id, 'platform:revenue', 200, 'USD', 1,
            'usage:' || id, ended_at FROM new_finished ORDER BY id""",
    ),
    (
        "idempotency_keys",
        """INSERT INTO idempotency_keys (tenant_id, key, request_hash, job_id, created_at)
        SELECT tenant_id, id::text, '', id, now() - interval '1 minute' FROM new_queued""",
    ),
)

_HOLD = """
UPDATE accounts a SET held_micros = held_micros + r.amount
FROM (SELECT tenant_id, sum(amount_micros) AS amount FROM reservations WHERE state = 'held'
    GROUP BY tenant_id) r
WHERE r.tenant_id = a.tenant_id
"""


@dataclass(frozen=True, slots=True)
class BigTables:
    """Whose rows they are."""

    flood: UUID  # the tenant of nearly all of them
    light: Sequence[UUID]  # tenants with one queued job each, the first ones among the oldest
    num_queued: int
    num_finished: int
    around: Surroundings

    def queued_job(self, connection: DictConnection, tenant_id: UUID) -> UUID:
        """The queued job of a tenant that is claimed last."""
        row = connection.execute(
            "SELECT id FROM jobs WHERE tenant_id = %s AND status = 'queued'"
            " AND deleted_at IS NULL AND finished_at IS NULL ORDER BY id DESC LIMIT 1",
            (tenant_id,),
        ).fetchone()
        assert row is not None
        return UUID(str(row["id"]))


def build(
    owner: DictConnection, *, num_queued: int, num_finished: int, num_light: int = NUM_LIGHT
) -> BigTables:
    """Fill a migrated database: about a minute for each million of queued or finished jobs."""
    flood = create_tenant(owner, name="flood", credit_micros=10**15)
    light = [uuid7() for _ in range(min(num_light, num_queued // 2))]
    with owner.transaction():
        owner.execute("SET LOCAL statement_timeout = 0")
        owner.execute("SET LOCAL maintenance_work_mem = '256MB'")
        owner.execute(_OLD_MONTHS.replace("{months}", str(NUM_OLD_MONTHS)).encode())
        owner.execute(_LIGHT_TENANTS, (light,))
        _fill(owner, flood, light, num_queued, num_finished)
        owner.execute(_HOLD)
        around = surround(owner, flood, light, num=min(num_finished, MAX_AROUND))
    _analyze(owner)
    return BigTables(flood, light, num_queued, num_finished, around)


def _fill(
    owner: DictConnection, flood: UUID, light: Sequence[UUID], num_queued: int, num_finished: int
) -> None:
    parameters = {
        "flood": flood,
        "lane": lane_for(flood),
        "light": list(light),
        "lanes": [lane_for(tenant_id) for tenant_id in light],
        "step": num_queued // max(len(light), 1),
        "pool": POOL,
    }
    owner.execute(_QUEUED, {**parameters, "num": num_queued})
    owner.execute(_FINISHED, {**parameters, "num": max(num_finished, 1)})
    for table in dict.fromkeys(table for table, _ in _FILL):
        with _without_indexes(owner, table):
            for statement in (statement for of, statement in _FILL if of == table):
                owner.execute(statement.encode(), parameters)
    owner.execute("DROP TABLE new_queued, new_finished")


def _analyze(owner: DictConnection) -> None:
    """What autovacuum does within minutes."""
    before = owner.execute("SELECT current_setting('statement_timeout') AS timeout").fetchone()
    assert before is not None
    owner.execute("SET statement_timeout = 0")
    owner.execute("VACUUM (ANALYZE)")
    owner.execute("SELECT set_config('statement_timeout', %s, false)", (before["timeout"],))


@contextmanager
def _without_indexes(owner: DictConnection, table: str) -> Iterator[None]:
    """Built at once they cost a third of what they cost row by row."""
    constraints = owner.execute(
        "SELECT conname AS name, pg_get_constraintdef(oid) AS definition FROM pg_constraint"
        " WHERE conrelid = %s::regclass AND contype IN ('p', 'u')",
        (table,),
    ).fetchall()
    indexes = owner.execute(
        "SELECT c.relname AS name, pg_get_indexdef(c.oid) AS definition FROM pg_index i"
        " JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = %s::regclass"
        " AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = c.oid)",
        (table,),
    ).fetchall()
    name = sql.Identifier(table)
    for index in indexes:
        owner.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(index["name"])))
    for constraint in constraints:
        owner.execute(_ALTER.format(name, sql.SQL("DROP"), sql.Identifier(constraint["name"])))
    yield
    for constraint in constraints:
        added = sql.SQL("{} {}").format(
            sql.Identifier(constraint["name"]), sql.SQL(constraint["definition"])
        )
        owner.execute(_ALTER.format(name, sql.SQL("ADD"), added))
    for index in indexes:
        owner.execute(index["definition"].replace(" ON ONLY ", " ON ").encode())


_ALTER = sql.SQL("ALTER TABLE {} {} CONSTRAINT {}")
