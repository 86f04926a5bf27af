DROP FUNCTION queue_position(uuid);
DROP FUNCTION refuse_admission();
DROP FUNCTION finished_jobs(uuid[]);
DROP TABLE jobs, job_payloads, job_results, job_attempts, job_outcomes, idempotency_keys,
    reservations, usage, ledger_entries, accounts, worker_leases, prices, price_books,
    model_assets, models, api_keys, tenants;
DROP FUNCTION ensure_partitions(integer);
DROP FUNCTION drop_partitions(integer);
DROP FUNCTION uuid7_floor(timestamptz);
DROP FUNCTION refuse_change();
DROP FUNCTION cost_micros(integer, integer, integer, bigint, bigint, bigint);
REVOKE USAGE ON SCHEMA public FROM millrace_api, millrace_worker, millrace_billing;
REVOKE SELECT ON alembic_version FROM millrace_api, millrace_worker, millrace_billing;
