-- Money is in integer micros of the account's currency.

CREATE TABLE accounts (
    tenant_id uuid PRIMARY KEY REFERENCES tenants,
    currency text NOT NULL,
    balance_micros bigint NOT NULL DEFAULT 0,    -- always the sum of its ledger entries
    held_micros bigint NOT NULL DEFAULT 0 CHECK (held_micros >= 0),
    credit_limit_micros bigint NOT NULL DEFAULT 0 CHECK (credit_limit_micros >= 0)
) WITH (fillfactor = 50);

CREATE TABLE reservations (
    job_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL REFERENCES accounts,
    amount_micros bigint NOT NULL CHECK (amount_micros >= 0),
    state text NOT NULL DEFAULT 'held' CHECK (state IN ('held', 'settled', 'released')),
    settled_micros bigint CHECK (settled_micros <= amount_micros),
    created_at timestamptz NOT NULL DEFAULT now(),
    resolved_at timestamptz,
    CHECK ((state = 'held') = (resolved_at IS NULL)),
    CHECK ((state = 'held') = (settled_micros IS NULL))
);
CREATE INDEX reservations_held ON reservations (created_at) WHERE state = 'held';

CREATE TABLE usage (                             -- reports read this table and nothing else
    job_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    api_key_id text NOT NULL,
    model text NOT NULL,
    service_tier text NOT NULL,
    status text NOT NULL,
    payer text NOT NULL,
    input_tokens integer NOT NULL,
    cached_tokens integer NOT NULL,
    output_tokens integer NOT NULL,
    price_version integer NOT NULL,
    amount_micros bigint NOT NULL CHECK (amount_micros >= 0),
    currency text NOT NULL,
    created_at timestamptz NOT NULL              -- when the job ended
);
CREATE INDEX usage_of_tenant ON usage (tenant_id, created_at);

-- Double entry: each row moves one amount from one account to another, so the books balance by
-- construction. Accounts: `tenant:<id>`, `platform:cash`, `platform:revenue`.
CREATE TABLE ledger_entries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('topup', 'usage', 'adjust', 'refund')),
    tenant_id uuid NOT NULL REFERENCES tenants,
    job_id uuid,
    debit_account text NOT NULL,
    credit_account text NOT NULL,
    amount_micros bigint NOT NULL CHECK (amount_micros >= 0),
    currency text NOT NULL,
    price_version integer,
    idem_key text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK (debit_account <> credit_account),
    CHECK ((kind = 'usage') = (job_id IS NOT NULL))
);
CREATE UNIQUE INDEX ledger_one_usage_per_job ON ledger_entries (job_id) WHERE kind = 'usage';
CREATE INDEX ledger_of_tenant ON ledger_entries (tenant_id, id);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME;
END
$$;
CREATE TRIGGER ledger_append_only BEFORE UPDATE OR DELETE ON ledger_entries
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER ledger_no_truncate BEFORE TRUNCATE ON ledger_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_append_only BEFORE UPDATE OR DELETE ON usage
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_no_truncate BEFORE TRUNCATE ON usage
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER prices_append_only BEFORE UPDATE OR DELETE ON prices
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- What a job costs, as billing/pricing.py says it: exact, rounded up once. numeric, because tokens
-- times a price may pass 64 bits and one such job must not fail the batch it is settled in.
CREATE FUNCTION cost_micros(input_tokens integer, cached_tokens integer, output_tokens integer,
    input_price bigint, cached_price bigint, output_price bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN div((input_tokens - cached_tokens)::numeric * input_price
        + cached_tokens::numeric * cached_price + output_tokens::numeric * output_price + 999999,
        1000000)::bigint;
