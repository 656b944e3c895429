-- run() keeps the plans of the last few commands. Nobody notices but the clock:
-- they are right after whatever a plan depends on has changed, for every role, when
-- a command runs itself, and they do not pile up.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
CREATE SCHEMA plans_a;
CREATE SCHEMA plans_b;
CREATE ROLE regress_plans_a;
CREATE ROLE regress_plans_b;
RESET client_min_messages;
\pset footer off

-- Runs a command under a new key; its result, or the SQLSTATE of its error.
CREATE SEQUENCE pg_temp.key;
GRANT USAGE ON SEQUENCE pg_temp.key TO PUBLIC;
CREATE FUNCTION pg_temp.run(command text, args jsonb DEFAULT NULL) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
	RETURN (SELECT coalesce(response_body, outcome)
			FROM idempotency.run('run', 'plans', nextval('pg_temp.key')::text, command, args));
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;
-- How many plans of these commands the connection has.
CREATE FUNCTION pg_temp.kept() RETURNS bigint LANGUAGE sql
AS $$ SELECT count(*) FROM pg_backend_memory_contexts WHERE name = 'CachedPlanSource' AND ident LIKE '/* kept */%' $$;

-- The same command, again and again: one plan, and each time its own arguments.
SELECT string_agg(pg_temp.run('/* kept */ SELECT $1->>''n''', jsonb_build_object('n', n)), ' ') FROM generate_series(1, 12) AS n;
SELECT pg_temp.kept();
-- An error leaves it as it was.
SELECT string_agg(pg_temp.run('/* kept */ SELECT 10 / ($1->>''n'')::int', jsonb_build_object('n', n % 3)), ' ') FROM generate_series(0, 8) AS n;
SELECT pg_temp.kept();

-- So do many that fail: there is still a place for one that does not.
SELECT string_agg(DISTINCT pg_temp.run(format('/* kept */ SELECT 1 / (%s - %s)', n, n)), ' ') FROM generate_series(1, 40) AS n;
SELECT pg_temp.run('/* kept */ SELECT ''after errors''');
SELECT count(*) FROM pg_backend_memory_contexts WHERE name = 'CachedPlanSource' AND ident LIKE '%after errors%';

-- What a plan depends on changes.
CREATE TABLE plans_a.t (v text);
CREATE TABLE plans_b.t (v text);
INSERT INTO plans_a.t VALUES ('a');
INSERT INTO plans_b.t VALUES ('b');
SET search_path = plans_a;
SELECT pg_temp.run('SELECT * FROM t');
ALTER TABLE t ADD w text DEFAULT 'w';
SELECT pg_temp.run('SELECT * FROM t');
SET search_path = plans_b;
SELECT pg_temp.run('SELECT * FROM t');
SET search_path = plans_a;
SELECT pg_temp.run('SELECT * FROM t');
DROP TABLE t;
SELECT pg_temp.run('SELECT * FROM t');
CREATE TABLE t (v text);
INSERT INTO t VALUES ('made anew');
SELECT pg_temp.run('SELECT * FROM t');
-- What takes its place, in a schema that is searched earlier.
CREATE TEMP TABLE t AS SELECT 'temporary' AS v;
SELECT pg_temp.run('SELECT * FROM t');
DROP TABLE pg_temp.t;
SELECT pg_temp.run('SELECT * FROM t');
SET search_path = plans_b, plans_a;
CREATE FUNCTION plans_a.f() RETURNS text LANGUAGE sql AS $$ SELECT 'a'::text $$;
SELECT pg_temp.run('SELECT f()');
CREATE FUNCTION plans_b.f() RETURNS text LANGUAGE sql AS $$ SELECT 'b'::text $$;
SELECT pg_temp.run('SELECT f()');
SET search_path = plans_a;
DISCARD PLANS;
SELECT pg_temp.run('SELECT * FROM t');
RESET search_path;

-- Who runs it. A function that only one role may execute is inlined into that
-- role's plan; rows are visible to one role only.
CREATE FUNCTION plans_a.secret() RETURNS text STABLE LANGUAGE sql AS $$ SELECT 'secret'::text $$;
REVOKE EXECUTE ON FUNCTION plans_a.secret() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION plans_a.secret() TO regress_plans_a;
GRANT USAGE ON SCHEMA plans_a TO regress_plans_a, regress_plans_b;
CREATE TABLE plans_a.own (who name);
INSERT INTO plans_a.own VALUES ('regress_plans_a'), ('regress_plans_b');
ALTER TABLE plans_a.own ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON plans_a.own USING (who = current_user);
GRANT SELECT ON plans_a.own TO regress_plans_a, regress_plans_b;
GRANT SELECT ON plans_a.t TO regress_plans_a;
SELECT idempotency.grant_usage('regress_plans_a'), idempotency.grant_usage('regress_plans_b');
CREATE TABLE answer (n serial, who name DEFAULT current_user, secret text, own text, other text);
GRANT INSERT ON answer TO PUBLIC;
GRANT USAGE ON SEQUENCE answer_n_seq TO PUBLIC;
\set ask 'INSERT INTO answer (secret, own, other) SELECT pg_temp.run(''SELECT plans_a.secret()''), pg_temp.run(''SELECT string_agg(who, '''', '''') FROM plans_a.own''), pg_temp.run(''SELECT v FROM plans_a.t'');'
SET ROLE regress_plans_a;
:ask
:ask
-- Often enough for a plan that is used as it is.
SELECT DISTINCT pg_temp.run('SELECT plans_a.secret()') FROM generate_series(1, 10);
SET ROLE regress_plans_b;
:ask
:ask
SET ROLE regress_plans_a;
:ask
RESET ROLE;
SELECT who, secret, own, other FROM answer ORDER BY n;

-- A command that runs itself, and others, deeper than plans are kept.
CREATE FUNCTION pg_temp.down(n int) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	IF n = 0 THEN
		RETURN 'bottom';
	END IF;
	RETURN (SELECT response_body FROM idempotency.run('run', 'down', nextval('pg_temp.key')::text,
		CASE WHEN n % 2 = 0 THEN '/* kept */ SELECT pg_temp.down(($1)::int)' ELSE format('/* kept */ SELECT pg_temp.down(($1)::int) || %L', '') END || repeat(' ', n / 4), to_jsonb(n - 1)));
END $$;
SELECT pg_temp.down(100);
SELECT pg_temp.down(100);
SELECT pg_temp.kept() <= 32 AS bounded;

-- Several statements are not planned beforehand: each knows what the one before made.
SELECT pg_temp.run('CREATE TEMP TABLE made AS SELECT 1 AS a; SELECT a + 1 FROM made');
SELECT pg_temp.run('DROP TABLE made; CREATE TEMP TABLE made AS SELECT 5 AS a; SELECT a + 1 FROM made');
CREATE FUNCTION pg_temp.make() RETURNS int LANGUAGE plpgsql AS $$ BEGIN CREATE TEMP TABLE made_by_call AS SELECT 7 AS a; RETURN 1; END $$;
SELECT pg_temp.run('SELECT pg_temp.make(); SELECT a + 1 FROM made_by_call');
-- What is wrong is said of the command.
SELECT outcome FROM idempotency.run('run', 'plans', 'syntax', 'SELECT 1 FROM FROM t');
SELECT outcome FROM idempotency.run('run', 'plans', 'name', 'SELECT nothing_like_it');

-- Thousands of commands, each run once: as many plans as before, and no more memory.
CREATE FUNCTION pg_temp.many(first int, last int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN first..last LOOP
		PERFORM pg_temp.run(format('/* kept */ SELECT %s', i));
	END LOOP;
END $$;
CREATE TEMP TABLE memory (at serial, bytes bigint);
SELECT pg_temp.many(1, 500);
INSERT INTO memory (bytes) SELECT sum(total_bytes) FROM pg_backend_memory_contexts WHERE name ~ '^(CacheMemoryContext|CachedPlan|TopMemoryContext|idempotency)';
SELECT pg_temp.many(501, 3000);
INSERT INTO memory (bytes) SELECT sum(total_bytes) FROM pg_backend_memory_contexts WHERE name ~ '^(CacheMemoryContext|CachedPlan|TopMemoryContext|idempotency)';
SELECT pg_temp.kept();
SELECT max(bytes) - min(bytes) < 200000 AS flat FROM memory;
-- A long command is not kept.
SELECT pg_temp.run('/* kept */ SELECT length(''' || repeat('x', 10000) || ''')');
SELECT count(*) FROM pg_backend_memory_contexts WHERE name = 'CachedPlanSource' AND ident LIKE '%xxxxxxx%';

SET client_min_messages = warning;
DROP TABLE answer;
DROP SCHEMA plans_a, plans_b CASCADE;
SELECT idempotency.revoke_usage('regress_plans_a'), idempotency.revoke_usage('regress_plans_b');
DROP ROLE regress_plans_a, regress_plans_b;
