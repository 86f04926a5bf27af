-- Each process connects as its own role. Roles are shared by all databases of a cluster.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['millrace_api', 'millrace_worker', 'millrace_billing'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
    END LOOP;
EXCEPTION
    -- Two databases of one cluster migrating at once: the other one made them.
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;
