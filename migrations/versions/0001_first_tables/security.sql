-- What each role may touch, and row-level security as the second belt behind `WHERE tenant_id`.

GRANT USAGE ON SCHEMA public TO millrace_api, millrace_worker, millrace_billing;
GRANT SELECT ON alembic_version TO millrace_api, millrace_worker, millrace_billing;

GRANT SELECT ON tenants, api_keys, models, model_assets, price_books, prices, worker_leases, jobs,
    job_payloads, job_results, job_attempts, job_outcomes, idempotency_keys, accounts, reservations,
    usage, ledger_entries TO millrace_api;
GRANT INSERT ON jobs, job_payloads, job_outcomes, idempotency_keys, reservations TO millrace_api;
-- A cancel ends a queued job; nothing else of a job is the API's to change.
GRANT UPDATE (status, reason, cancel_requested_at, cancel_by, finished_at, cost_micros, cached_tokens,
    output_tokens, error_code, error_message, error_retryable, hinted_at, hint_count) ON jobs TO millrace_api;
GRANT UPDATE (held_micros) ON accounts TO millrace_api;
GRANT UPDATE (request_hash, job_id, created_at) ON idempotency_keys TO millrace_api;

GRANT SELECT ON tenants, models, model_assets, price_books, prices, accounts, reservations TO millrace_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON worker_leases TO millrace_worker;
GRANT SELECT, INSERT, UPDATE ON jobs, job_attempts, job_results, job_outcomes TO millrace_worker;
GRANT SELECT ON job_payloads TO millrace_worker;
GRANT SELECT, DELETE ON idempotency_keys TO millrace_worker;
GRANT EXECUTE ON FUNCTION ensure_partitions(integer), drop_partitions(integer) TO millrace_worker;

GRANT SELECT ON tenants, jobs, price_books, prices TO millrace_billing;
GRANT SELECT, UPDATE ON job_outcomes, accounts, reservations TO millrace_billing;
GRANT SELECT, INSERT ON usage, ledger_entries TO millrace_billing;

-- Tables that hold one tenant's rows. The API names its tenant a transaction at a time
-- (`SET LOCAL app.tenant_id`); unset means no rows at all.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['jobs', 'job_payloads', 'job_results', 'job_attempts', 'job_outcomes',
        'idempotency_keys', 'accounts', 'reservations', 'usage', 'ledger_entries'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY own_rows ON %I TO millrace_api
            USING (tenant_id = nullif(current_setting(''app.tenant_id'', true), '''')::uuid)', name);
        EXECUTE format('CREATE POLICY all_rows ON %I TO millrace_worker, millrace_billing
            USING (true) WITH CHECK (true)', name);
    END LOOP;
END
$$;

-- The stream hub of an API process asks for the jobs of all its readers in one query. It learns
-- only whether jobs whose readers it has already authorised are over.
CREATE FUNCTION finished_jobs(ids uuid[]) RETURNS SETOF uuid
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT id FROM jobs WHERE id = ANY (ids) AND finished_at IS NOT NULL;
END;
REVOKE ALL ON FUNCTION finished_jobs(uuid[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION finished_jobs(uuid[]) TO millrace_api;

-- Ends a statement, and so its transaction, with an error the API knows by its SQLSTATE. Admission is
-- one statement and must leave nothing behind when the credit doesn't cover it.
CREATE FUNCTION refuse_admission() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'insufficient quota' USING ERRCODE = 'MR402';
END
$$;

-- How many jobs of the same pool and tier are ahead of a queued job of the asking tenant.
CREATE FUNCTION queue_position(job_id uuid) RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT count(ahead.id) FROM jobs mine LEFT JOIN jobs ahead ON ahead.status = 'queued'
        AND ahead.pool = mine.pool AND ahead.service_tier = mine.service_tier AND ahead.id < mine.id
    WHERE mine.id = queue_position.job_id AND mine.status = 'queued'
        AND mine.tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid
    GROUP BY mine.id;
END;
REVOKE ALL ON FUNCTION queue_position(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION queue_position(uuid) TO millrace_api;
