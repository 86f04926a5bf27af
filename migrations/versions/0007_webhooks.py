"""Webhooks: who is told of the end of responses and batches, and what is still to be told.

Instant: new tables, and triggers that do nothing for tenants without an endpoint. Works with the
previous release: it doesn't know them.
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_TENANT = "tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid"
_SHOWN = (
    "id, tenant_id, url, event_types, name, secret_hint, is_enabled, disabled_reason, created_at,"
    " updated_at"
)

_UP = (
    """
    CREATE TABLE webhook_endpoints (
        id uuid PRIMARY KEY,
        tenant_id uuid NOT NULL REFERENCES tenants,
        url text NOT NULL,
        event_types text[] NOT NULL,
        name text NOT NULL,
        is_enabled boolean NOT NULL DEFAULT true,
        disabled_reason text,
        secret bytea NOT NULL,
        secret_hint text NOT NULL,               -- its last characters
        previous_secret bytea,                   -- signs too until previous_until
        previous_until timestamptz,
        failing_since timestamptz,               -- first failure after the last success
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE INDEX webhook_endpoints_of_tenant ON webhook_endpoints (tenant_id, id)",
    # An event for one endpoint. The events of one end have one event_id. No foreign key: an endpoint that
    # is deleted at this moment must not fail the end of a job.
    """
    CREATE TABLE webhook_deliveries (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        endpoint_id uuid NOT NULL,
        tenant_id uuid NOT NULL,
        event_id uuid NOT NULL,
        type text NOT NULL,
        object_id text NOT NULL,                 -- as on the wire
        attempts integer NOT NULL DEFAULT 0,
        next_attempt_at timestamptz DEFAULT now(),  -- null once it is over
        try_until timestamptz NOT NULL DEFAULT now() + interval '24 hours',
        last_status_code integer,
        last_error text,
        delivered_at timestamptz,
        given_up_at timestamptz,
        created_at timestamptz NOT NULL DEFAULT now(),
        UNIQUE (endpoint_id, event_id)
    )
    """,
    "CREATE INDEX webhook_deliveries_due ON webhook_deliveries (endpoint_id, next_attempt_at)"
    " WHERE next_attempt_at IS NOT NULL",
    "CREATE INDEX webhook_deliveries_listed ON webhook_deliveries (endpoint_id, created_at, id)",
    "CREATE INDEX webhook_deliveries_age ON webhook_deliveries (created_at)",
    # The outbox: written by the statement that ends a job or a batch, whatever role runs it.
    """
    CREATE FUNCTION note_ended_responses() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    BEGIN
        IF NOT EXISTS (SELECT FROM ended JOIN webhook_endpoints w USING (tenant_id)
                WHERE w.is_enabled) THEN
            RETURN NULL;
        END IF;
        INSERT INTO webhook_deliveries (endpoint_id, tenant_id, event_id, type, object_id)
        SELECT w.id, e.tenant_id, e.event_id, e.type, e.object_id
        FROM (
            SELECT n.tenant_id, gen_random_uuid() AS event_id, 'response.' || n.status AS type,
                'resp_' || replace(n.job_id::text, '-', '') AS object_id
            FROM ended n, LATERAL (              -- by its id, however many jobs there are
                SELECT FROM jobs j
                WHERE j.id = n.job_id AND j.dialect = 'response' AND j.is_background OFFSET 0
            ) j
            OFFSET 0                             -- one event_id an end, not one an endpoint
        ) e
        JOIN webhook_endpoints w ON w.tenant_id = e.tenant_id AND w.is_enabled
            AND e.type = ANY (w.event_types);
        RETURN NULL;
    END
    $$
    """,
    """
    CREATE TRIGGER note_ended_responses AFTER INSERT ON job_outcomes
        REFERENCING NEW TABLE AS ended
        FOR EACH STATEMENT EXECUTE FUNCTION note_ended_responses()
    """,
    """
    CREATE FUNCTION note_ended_batch() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    BEGIN
        INSERT INTO webhook_deliveries (endpoint_id, tenant_id, event_id, type, object_id)
        SELECT w.id, NEW.tenant_id, e.event_id, 'batch.' || NEW.status,
            'batch_' || replace(NEW.id::text, '-', '')
        FROM (SELECT gen_random_uuid() AS event_id OFFSET 0) e, webhook_endpoints w
        WHERE w.tenant_id = NEW.tenant_id AND w.is_enabled
            AND 'batch.' || NEW.status = ANY (w.event_types);
        RETURN NULL;
    END
    $$
    """,
    """
    CREATE TRIGGER note_ended_batch AFTER UPDATE OF status ON batches FOR EACH ROW
        WHEN (OLD.status <> NEW.status
            AND NEW.status IN ('completed', 'failed', 'expired', 'cancelled'))
        EXECUTE FUNCTION note_ended_batch()
    """,
    # So the API can give an endpoint a new secret and never read one.
    """
    CREATE FUNCTION keep_previous_secret() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.previous_secret := OLD.secret;
        RETURN NEW;
    END
    $$
    """,
    """
    CREATE TRIGGER keep_previous_secret BEFORE UPDATE OF secret ON webhook_endpoints
        FOR EACH ROW EXECUTE FUNCTION keep_previous_secret()
    """,
    f"GRANT SELECT ({_SHOWN}),"
    " INSERT (id, tenant_id, url, event_types, name, secret, secret_hint),"
    " UPDATE (url, event_types, name, is_enabled, disabled_reason, failing_since, secret,"
    " secret_hint, previous_until, updated_at), DELETE ON webhook_endpoints TO millrace_api",
    "GRANT SELECT, INSERT (endpoint_id, tenant_id, event_id, type, object_id, try_until),"
    " UPDATE (attempts, next_attempt_at, try_until, delivered_at, given_up_at), DELETE"
    " ON webhook_deliveries TO millrace_api",
    "GRANT SELECT, UPDATE ON webhook_endpoints TO millrace_worker",
    "GRANT SELECT, UPDATE, DELETE ON webhook_deliveries TO millrace_worker",
    "ALTER TABLE webhook_endpoints ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE webhook_deliveries ENABLE ROW LEVEL SECURITY",
    f"CREATE POLICY own_rows ON webhook_endpoints TO millrace_api USING ({_TENANT})",
    f"CREATE POLICY own_rows ON webhook_deliveries TO millrace_api USING ({_TENANT})",
    "CREATE POLICY all_rows ON webhook_endpoints TO millrace_worker USING (true) WITH CHECK (true)",
    "CREATE POLICY all_rows ON webhook_deliveries TO millrace_worker USING (true) WITH CHECK (true)",
)

_DOWN = (
    "DROP TRIGGER note_ended_batch ON batches",
    "DROP TRIGGER note_ended_responses ON job_outcomes",
    "DROP TABLE webhook_deliveries",
    "DROP TABLE webhook_endpoints",
    "DROP FUNCTION note_ended_batch()",
    "DROP FUNCTION note_ended_responses()",
    "DROP FUNCTION keep_previous_secret()",
)


def upgrade() -> None:
    """In this order: deliveries belong to endpoints."""
    for statement in _UP:
        op.execute(statement.replace(":", r"\:"))


def downgrade() -> None:
    """What was not delivered yet is lost."""
    for statement in _DOWN:
        op.execute(statement)
