"""Usage by end user, and how long a model's answers are.

Instant, and works with the previous release: it leaves end users out.
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_UP = (
    "ALTER TABLE job_outcomes ADD end_user text",
    "ALTER TABLE usage ADD end_user text",
    # What an estimate says of a model to tenants who have little history of their own with it. Only
    # quantiles leave, and only where no tenant can be made out behind them: at least three others,
    # and of each no more than its latest 50 jobs, so that none outweighs the rest. The latest jobs
    # of all models are looked through and no more, so that a rare model costs no scan of the table.
    """
    CREATE FUNCTION output_quantiles(asked_model text)
        RETURNS TABLE (samples bigint, p50 double precision, p90 double precision,
            p99 double precision)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    BEGIN ATOMIC
        SELECT count(*), percentile_disc(0.5) WITHIN GROUP (ORDER BY output_tokens)::float8,
            percentile_disc(0.9) WITHIN GROUP (ORDER BY output_tokens)::float8,
            percentile_disc(0.99) WITHIN GROUP (ORDER BY output_tokens)::float8
        FROM (
            SELECT tenant_id, output_tokens,
                row_number() OVER (PARTITION BY tenant_id ORDER BY job_id DESC) AS nth
            FROM (
                SELECT job_id, tenant_id, model, output_tokens FROM usage
                WHERE job_id >= uuid7_floor(now() - interval '30 days')
                ORDER BY job_id DESC LIMIT 50000
            ) latest
            WHERE model = asked_model AND output_tokens > 0
        ) recent
        WHERE nth <= 50
        HAVING count(*) >= 50 AND count(DISTINCT tenant_id) FILTER (WHERE tenant_id IS DISTINCT FROM
            nullif(current_setting('app.tenant_id', true), '')::uuid) >= 3;
    END
    """,
    "REVOKE ALL ON FUNCTION output_quantiles(text) FROM PUBLIC",
    "GRANT EXECUTE ON FUNCTION output_quantiles(text) TO millrace_api",
)

_DOWN = (
    "DROP FUNCTION output_quantiles(text)",
    "ALTER TABLE usage DROP end_user",
    "ALTER TABLE job_outcomes DROP end_user",
)


def upgrade() -> None:
    """All partitions get the column with their parent."""
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    """Reports by end user are lost."""
    for statement in _DOWN:
        op.execute(statement)
