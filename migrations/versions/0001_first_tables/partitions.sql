-- One partition a month. A default partition catches ids from outside, so that no insert fails.

CREATE FUNCTION uuid7_floor(at timestamptz) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT
    RETURN (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid;

CREATE FUNCTION ensure_partitions(months_ahead integer) RETURNS integer
    -- A partition waits for every query on its parent and holds up those behind it: not for long.
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    parent text;
    month timestamptz;
    name text;
    made integer := 0;
BEGIN
    -- Months are UTC months, whatever the session's time zone.
    PERFORM set_config('timezone', 'UTC', true);
    -- One caller at a time: two would both find a partition missing.
    PERFORM pg_advisory_xact_lock(x'70617274'::bigint);
    FOREACH parent IN ARRAY ARRAY['jobs', 'job_payloads', 'job_results', 'job_attempts', 'job_outcomes'] LOOP
        FOR i IN 0..months_ahead LOOP
            month := date_trunc('month', now()) + make_interval(months => i);
            name := parent || '_p' || to_char(month, 'YYYYMM');
            CONTINUE WHEN to_regclass(name) IS NOT NULL;
            BEGIN
                EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)',
                    name, parent, uuid7_floor(month), uuid7_floor(month + interval '1 month'));
            EXCEPTION WHEN check_violation THEN
                -- Rows of this month are in the default partition already and stay there.
                RAISE WARNING 'no partition %, the default one holds its rows', name;
                CONTINUE;
            END;
            -- A row a state change updates in place when its page has room.
            IF parent IN ('jobs', 'job_attempts', 'job_outcomes') THEN
                EXECUTE format('ALTER TABLE %I SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02)', name);
            END IF;
            made := made + 1;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$;
REVOKE ALL ON FUNCTION ensure_partitions(integer) FROM PUBLIC;

CREATE FUNCTION drop_partitions(keep_months integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    part record;
    oldest text := to_char(date_trunc('month', now() AT TIME ZONE 'UTC') - make_interval(months => keep_months), 'YYYYMM');
    dropped integer := 0;
    open_rows boolean;
    kept text := '';
BEGIN
    IF keep_months < 1 THEN
        RAISE EXCEPTION 'keep at least one month';
    END IF;
    FOR part IN
        SELECT c.relname AS name, p.relname AS parent FROM pg_inherits i
        JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
        WHERE p.relname IN ('jobs', 'job_payloads', 'job_results', 'job_attempts', 'job_outcomes')
            AND c.relname ~ '_p[0-9]{6}$' AND right(c.relname, 6) < oldest
        ORDER BY right(c.relname, 6), p.relname <> 'job_outcomes', p.relname = 'jobs'
    LOOP
        -- A month with an open job or an unsettled outcome stays, however old.
        CONTINUE WHEN right(part.name, 6) = kept;
        EXECUTE format('SELECT EXISTS (SELECT FROM %I WHERE finished_at IS NULL)',
            'jobs_p' || right(part.name, 6)) INTO open_rows;
        IF part.parent = 'job_outcomes' AND NOT open_rows THEN
            EXECUTE format('SELECT EXISTS (SELECT FROM %I WHERE settled_at IS NULL)', part.name) INTO open_rows;
        END IF;
        IF open_rows THEN
            kept := right(part.name, 6);
            CONTINUE;
        END IF;
        EXECUTE format('DROP TABLE %I', part.name);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$$;
REVOKE ALL ON FUNCTION drop_partitions(integer) FROM PUBLIC;

CREATE TABLE jobs_default PARTITION OF jobs DEFAULT;
CREATE TABLE job_payloads_default PARTITION OF job_payloads DEFAULT;
CREATE TABLE job_results_default PARTITION OF job_results DEFAULT;
CREATE TABLE job_attempts_default PARTITION OF job_attempts DEFAULT;
CREATE TABLE job_outcomes_default PARTITION OF job_outcomes DEFAULT;

SELECT ensure_partitions(3);
