-- Tenants and their keys ---------------------------------------------------------------------

CREATE TABLE tenants (
    id uuid PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 100),
    tiers text[] NOT NULL,                       -- service tiers its plan allows
    default_tier text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK (default_tier = ANY (tiers))
);

CREATE TABLE api_keys (
    key_id text PRIMARY KEY,
    tenant_id uuid NOT NULL REFERENCES tenants,
    name text NOT NULL,
    hash bytea NOT NULL,                         -- HMAC-SHA256(pepper, whole key)
    pepper_version smallint NOT NULL,
    last4 text NOT NULL,
    scopes text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX api_keys_tenant ON api_keys (tenant_id);

-- Catalog ------------------------------------------------------------------------------------

CREATE TABLE models (
    name text PRIMARY KEY,
    pool text NOT NULL,
    source text NOT NULL,                        -- hub id or folder
    revision text,
    dtype text NOT NULL,
    context_length integer NOT NULL CHECK (context_length > 0),
    max_output_tokens integer NOT NULL CHECK (max_output_tokens > 0),
    status text NOT NULL CHECK (status IN ('active', 'retired')),
    capabilities text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE model_assets (                      -- what the API needs to count tokens and render
    model_name text NOT NULL REFERENCES models ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('tokenizer', 'chat_template', 'tokenizer_config')),
    sha256 bytea NOT NULL,
    content bytea NOT NULL,
    PRIMARY KEY (model_name, kind)
);

CREATE TABLE price_books (
    version integer PRIMARY KEY,
    currency text NOT NULL,
    sha256 bytea NOT NULL UNIQUE,                -- applying the same prices again makes no version
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE prices (                            -- micros per million tokens; never updated
    version integer NOT NULL REFERENCES price_books,
    model_name text NOT NULL,
    service_tier text NOT NULL,
    input_micros bigint NOT NULL CHECK (input_micros >= 0),
    cached_micros bigint NOT NULL CHECK (cached_micros >= 0),
    output_micros bigint NOT NULL CHECK (output_micros >= 0),
    PRIMARY KEY (version, model_name, service_tier)
);

-- Workers ------------------------------------------------------------------------------------

CREATE TABLE worker_leases (                     -- one row a process start: its id is the epoch
    worker_id uuid PRIMARY KEY,
    hostname text NOT NULL,
    pid integer NOT NULL,
    pool text NOT NULL,
    device text NOT NULL,
    models text[] NOT NULL,
    slots integer NOT NULL,
    num_running integer NOT NULL DEFAULT 0,
    draining boolean NOT NULL DEFAULT false,
    started_at timestamptz NOT NULL DEFAULT now(),
    beat_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Jobs ---------------------------------------------------------------------------------------
-- Partitioned by id range: a UUIDv7 begins with its time. No foreign keys between them, so that a
-- month can be dropped.

CREATE TABLE jobs (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    api_key_id text NOT NULL,
    end_user text,                               -- OpenAI's `user`
    model text NOT NULL,
    model_requested text NOT NULL,
    pool text NOT NULL,
    service_tier text NOT NULL CHECK (service_tier IN ('priority', 'default', 'flex', 'batch')),
    lane smallint NOT NULL,
    status text NOT NULL CHECK (status IN
        ('queued', 'in_progress', 'completed', 'incomplete', 'failed', 'cancelled')),
    reason text,                                 -- fine reason of the ending, or of the waiting
    attempt integer NOT NULL DEFAULT 0,          -- fencing token: +1 a claim, never falls
    fail_count smallint NOT NULL DEFAULT 0,      -- lost and errored attempts; a drain costs nothing
    max_fails smallint NOT NULL,
    worker_id uuid,
    run_after timestamptz NOT NULL DEFAULT now(),
    deadline_at timestamptz NOT NULL,
    hinted_at timestamptz,
    hint_count integer NOT NULL DEFAULT 0,
    cancel_requested_at timestamptz,
    cancel_by text CHECK (cancel_by IN ('user', 'operator')),
    input_tokens integer NOT NULL,
    max_output_tokens integer NOT NULL,
    cached_tokens integer,
    output_tokens integer,
    price_version integer NOT NULL,              -- frozen at admission
    input_price bigint NOT NULL,
    cached_price bigint NOT NULL,
    output_price bigint NOT NULL,
    currency text NOT NULL,
    cost_micros bigint,
    error_code text,
    error_message text,
    error_retryable boolean,
    metadata jsonb NOT NULL DEFAULT '{}',
    request_hash bytea NOT NULL,
    idempotency_key text,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz,
    CONSTRAINT jobs_worker_iff_in_progress CHECK ((status = 'in_progress') = (worker_id IS NOT NULL)),
    CONSTRAINT jobs_finished_iff_terminal CHECK ((finished_at IS NOT NULL) =
        (status IN ('completed', 'incomplete', 'failed', 'cancelled')))
) PARTITION BY RANGE (id);
-- A ticket's claim: best queued job of one tenant, pool and tier.
CREATE INDEX jobs_ticket ON jobs (tenant_id, pool, service_tier, deadline_at, id)
    WHERE status = 'queued';
-- The idle worker's own look, the queue position, the re-hinter.
CREATE INDEX jobs_queued ON jobs (pool, service_tier, id) WHERE status = 'queued';
CREATE INDEX jobs_running ON jobs (worker_id) WHERE status = 'in_progress';
CREATE INDEX jobs_deadline ON jobs (deadline_at) WHERE status IN ('queued', 'in_progress');
CREATE INDEX jobs_of_tenant ON jobs (tenant_id, id);

CREATE TABLE job_payloads (                      -- prompts stay out of the hot row
    job_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    request jsonb NOT NULL,                      -- as sent, for the record
    prompt_token_ids bytea NOT NULL,             -- little-endian uint32
    sampling jsonb NOT NULL
) PARTITION BY RANGE (job_id);

CREATE TABLE job_results (
    job_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    output jsonb NOT NULL,                       -- [{index, text, finish_reason}]
    last_seq bigint NOT NULL,
    event_log bytea,                             -- zlib of the native events; null once expired
    created_at timestamptz NOT NULL DEFAULT now()
) PARTITION BY RANGE (job_id);
CREATE INDEX job_results_with_log ON job_results (job_id) WHERE event_log IS NOT NULL;

CREATE TABLE job_attempts (
    job_id uuid NOT NULL,
    attempt integer NOT NULL,
    tenant_id uuid NOT NULL,
    worker_id uuid NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    outcome text CHECK (outcome IN ('ok', 'lost', 'error', 'cancelled', 'drained')),
    checkpoint_seq bigint NOT NULL DEFAULT 0,    -- last event whose tokens are in the checkpoint
    checkpoint_token_ids bytea NOT NULL DEFAULT '',
    checkpoint_text text NOT NULL DEFAULT '',
    output_tokens integer NOT NULL DEFAULT 0,    -- produced by this attempt alone
    PRIMARY KEY (job_id, attempt),
    CHECK ((ended_at IS NULL) = (outcome IS NULL))
) PARTITION BY RANGE (job_id);

CREATE TABLE job_outcomes (                      -- the outbox of the billing service
    job_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    api_key_id text NOT NULL,
    model text NOT NULL,
    service_tier text NOT NULL,
    status text NOT NULL,
    reason text,
    payer text NOT NULL CHECK (payer IN ('tenant', 'platform', 'nobody')),
    attempt integer NOT NULL,
    input_tokens integer NOT NULL,
    cached_tokens integer NOT NULL,
    output_tokens integer NOT NULL,
    price_version integer NOT NULL,
    input_price bigint NOT NULL,
    cached_price bigint NOT NULL,
    output_price bigint NOT NULL,
    currency text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    settled_at timestamptz
) PARTITION BY RANGE (job_id);
CREATE INDEX job_outcomes_unsettled ON job_outcomes (job_id) WHERE settled_at IS NULL;

CREATE TABLE idempotency_keys (
    tenant_id uuid NOT NULL,
    key text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    request_hash bytea NOT NULL,
    job_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, key)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);
