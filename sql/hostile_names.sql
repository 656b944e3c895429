-- No name, type, operator, search path or planner setting of the caller's
-- changes what the calls do.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
DROP ROLE IF EXISTS regress_hostile;
RESET client_min_messages;
\set SHOW_CONTEXT never

-- A caller with nothing but the application's privileges, who may create what
-- many may: temporary objects, and objects in public.
CREATE ROLE regress_hostile;
SELECT idempotency.grant_usage('regress_hostile');
SELECT format('GRANT TEMP ON DATABASE %I TO regress_hostile', current_database()) \gexec
GRANT CREATE, USAGE ON SCHEMA public TO regress_hostile;

-- A session: what the calls answer in it, as one text, undone at its end. All
-- that it names is qualified, so that only what the calls do inside can differ.
CREATE FUNCTION public.hostile_session() RETURNS pg_catalog.text LANGUAGE plpgsql AS $$
DECLARE
	said pg_catalog.text := '';
	mine pg_catalog.int8;
	again pg_catalog.int8;
BEGIN
	said := pg_catalog.concat_ws(E'\n', said, (SELECT pg_catalog.concat_ws(' ', outcome, attempt, token) FROM idempotency.claim('hostile', 'own', 'k', '{"a": 1.0}', ttl => '2 days', note => 'note')));
	said := pg_catalog.concat_ws(E'\n', said, (SELECT pg_catalog.concat_ws(' ', outcome, attempt, retry_after_ms) FROM idempotency.claim('hostile', 'own', 'k')));
	PERFORM idempotency.complete('hostile', 'own', 'k', 201, '{"id":  1}', '[["A", "b"]]');
	PERFORM idempotency.complete('hostile', 'own', 'k', 201, '{"id":  1}', '[["A", "b"]]');
	said := pg_catalog.concat_ws(E'\n', said, (SELECT pg_catalog.concat_ws(' ', outcome, response_status, response_body, response_headers, fingerprint_checked) FROM idempotency.claim('hostile', 'own', 'k', '{"a": 1}')));
	said := pg_catalog.concat_ws(E'\n', said, (SELECT pg_catalog.concat_ws(' ', outcome, response_body) FROM idempotency.claim('hostile', 'own', 'k', '{"a": 2}')));
	said := pg_catalog.concat_ws(E'\n', said, (SELECT pg_catalog.concat_ws(' ', response_status, response_body) FROM idempotency.replay('hostile', 'own', 'k')));
	said := pg_catalog.concat_ws(E'\n', said, (SELECT pg_catalog.concat_ws(' ', status, attempt, note, pg_catalog.encode(fingerprint, 'hex')) FROM idempotency.lookup('hostile', 'own', 'k')));
	mine := (SELECT token FROM idempotency.claim('hostile', 'leased', 'k', lease => '1 us', claim_id => '11111111-1111-1111-1111-111111111111'));
	said := pg_catalog.concat_ws(E'\n', said, (SELECT pg_catalog.concat_ws(' ', outcome, attempt, token OPERATOR(pg_catalog.=) mine) FROM idempotency.claim('hostile', 'leased', 'k', lease => '1 hour', claim_id => '11111111-1111-1111-1111-111111111111')));
	said := pg_catalog.concat_ws(E'\n', said, idempotency.extend('hostile', 'leased', 'k', '5 min', mine) OPERATOR(pg_catalog.>) pg_catalog.now(), idempotency.fail('hostile', 'leased', 'k', 'error', token => mine));
	again := (SELECT token FROM idempotency.claim('hostile', 'leased', 'k', lease => '1 hour'));
	said := pg_catalog.concat_ws(E'\n', said, again OPERATOR(pg_catalog.>) mine);
	BEGIN
		PERFORM idempotency.complete('hostile', 'leased', 'k', token => mine);
	EXCEPTION WHEN SQLSTATE 'IK001' THEN
		said := pg_catalog.concat_ws(E'\n', said, 'stale');
	END;
	PERFORM idempotency.complete('hostile', 'leased', 'k', response_bytes => '\x00ff', token => again);
	said := pg_catalog.concat_ws(E'\n', said, (SELECT pg_catalog.concat_ws(' ', outcome, attempt, pg_catalog.encode(response_bytes, 'hex')) FROM idempotency.claim('hostile', 'leased', 'k')));
	PERFORM FROM idempotency.claim('hostile', 'released', 'k', lease => '1 hour');
	said := pg_catalog.concat_ws(E'\n', said, idempotency.release('hostile', 'released', 'k'), (SELECT pg_catalog.count(*) FROM idempotency.lookup('hostile', 'released', 'k')));
	said := pg_catalog.concat_ws(E'\n', said, idempotency.content_key('{"a": 1.00}'), idempotency.effect_key('a', 'b', 'c', 'd'));
	-- An operator's calls, where the role may make them.
	IF pg_catalog.current_setting('is_superuser') OPERATOR(pg_catalog.=) 'on' THEN
		said := pg_catalog.concat_ws(E'\n', said, idempotency.forget('hostile', 'own', 'k'), idempotency.forget_scope('hostile', true), idempotency.cleanup() OPERATOR(pg_catalog.>=) 0);
	END IF;
	RAISE SQLSTATE 'OK000';
EXCEPTION WHEN SQLSTATE 'OK000' THEN
	RETURN said;
END $$;
SELECT public.hostile_session() AS as_it_should_be;
CREATE TABLE public.hostile_reference (role pg_catalog.text, said pg_catalog.text);
GRANT SELECT ON public.hostile_reference TO regress_hostile;
INSERT INTO public.hostile_reference VALUES ('operator', public.hostile_session());
SET ROLE regress_hostile;
SELECT public.hostile_session() AS said \gset
RESET ROLE;
INSERT INTO public.hostile_reference VALUES ('application', :'said');
SELECT starts_with(o.said, a.said) AS but_for_the_operators_calls FROM public.hostile_reference o, public.hostile_reference a WHERE o.role = 'operator' AND a.role = 'application';

-- A new connection, in which nothing has been planned yet, and all of this is
-- there before the first call. Types of the caller's own, where every search
-- path looks first.
\c -
SET ROLE regress_hostile;
CREATE DOMAIN pg_temp.text AS pg_catalog.int4 CHECK (false);
CREATE DOMAIN pg_temp.bytea AS pg_catalog.int4 CHECK (false);
CREATE DOMAIN pg_temp.jsonb AS pg_catalog.int4 CHECK (false);
CREATE DOMAIN pg_temp.timestamptz AS pg_catalog.int4 CHECK (false);
CREATE DOMAIN pg_temp.int8 AS pg_catalog.bool CHECK (false);
CREATE DOMAIN pg_temp.int4 AS pg_catalog.bool CHECK (false);
CREATE DOMAIN pg_temp.bool AS pg_catalog.int4 CHECK (false);
CREATE TYPE pg_temp.uuid AS (nothing pg_catalog.int4);
CREATE TYPE pg_temp.interval AS ENUM ('long', 'short');
CREATE TABLE pg_temp.tid (nothing pg_catalog.int4);
CREATE TABLE pg_temp.regclass (nothing pg_catalog.int4);
-- Relations that look like the extension's own, one with forged rows.
CREATE TEMP TABLE idempotency_keys (scope pg_catalog.text, operation pg_catalog.text, key pg_catalog.text, status pg_catalog.text, response_body pg_catalog.text);
INSERT INTO pg_temp.idempotency_keys VALUES ('hostile', 'own', 'k', 'completed', 'forged');
CREATE TEMP SEQUENCE token_seq MAXVALUE 7 START 7;
CREATE TEMP TABLE policies (operation pg_catalog.text, ttl pg_catalog.text);
CREATE TEMP TABLE role_bindings (nothing pg_catalog.int4);
CREATE TEMP TABLE pg_class (nothing pg_catalog.int4);
CREATE TEMP TABLE pg_extension (nothing pg_catalog.int4);
-- Functions, which a search path finds in pg_temp only by that name.
CREATE FUNCTION pg_temp.nextval(pg_catalog.regclass) RETURNS pg_catalog.int8 LANGUAGE sql AS 'SELECT 1/0::pg_catalog.int8';
CREATE FUNCTION pg_temp.statement_timestamp() RETURNS pg_catalog.timestamptz LANGUAGE sql AS 'SELECT NULL::pg_catalog.timestamptz';
-- Operators and functions in public, ahead of the server's own.
CREATE FUNCTION public.hostile_no(pg_catalog.text, pg_catalog.text) RETURNS pg_catalog.bool LANGUAGE plpgsql AS 'BEGIN RAISE ''hijacked''; END';
CREATE FUNCTION public.hostile_no(pg_catalog.int8, pg_catalog.int8) RETURNS pg_catalog.bool LANGUAGE plpgsql AS 'BEGIN RAISE ''hijacked''; END';
CREATE FUNCTION public.hostile_no(pg_catalog.int8, pg_catalog.int4) RETURNS pg_catalog.bool LANGUAGE plpgsql AS 'BEGIN RAISE ''hijacked''; END';
CREATE FUNCTION public.hostile_no(pg_catalog.timestamptz, pg_catalog.timestamptz) RETURNS pg_catalog.bool LANGUAGE plpgsql AS 'BEGIN RAISE ''hijacked''; END';
CREATE FUNCTION public.hostile_no(pg_catalog.tid, pg_catalog.tid) RETURNS pg_catalog.bool LANGUAGE plpgsql AS 'BEGIN RAISE ''hijacked''; END';
CREATE FUNCTION public.hostile_no(pg_catalog.bool, pg_catalog.bool) RETURNS pg_catalog.bool LANGUAGE plpgsql AS 'BEGIN RAISE ''hijacked''; END';
\set ECHO none
SELECT format('CREATE OPERATOR public.%s (LEFTARG = pg_catalog.%s, RIGHTARG = pg_catalog.%s, FUNCTION = public.hostile_no)', op, l, r)
FROM unnest(ARRAY['=', '<>', '<', '<=', '>', '>='] OPERATOR(pg_catalog.||) ARRAY[]::pg_catalog.text[]) op,
	 (VALUES ('text', 'text'), ('int8', 'int8'), ('int8', 'int4'), ('timestamptz', 'timestamptz'), ('tid', 'tid'), ('bool', 'bool')) t (l, r) \gexec
\set ECHO all
CREATE FUNCTION public.clock_timestamp() RETURNS pg_catalog.timestamptz LANGUAGE sql AS 'SELECT NULL::pg_catalog.timestamptz';
CREATE FUNCTION public.nextval(pg_catalog.regclass) RETURNS pg_catalog.int8 LANGUAGE sql AS 'SELECT 1::pg_catalog.int8';

-- They are found where they are looked for.
SET search_path = pg_temp, public, pg_catalog;
SELECT 1::pg_catalog.int8 = 1::pg_catalog.int8;
SELECT '1'::text;
RESET search_path;

-- The same session under every search path, one after the other on this
-- connection, where plans have been made under another one.
CREATE FUNCTION pg_temp.same(setting pg_catalog.text, value pg_catalog.text) RETURNS pg_catalog.bool LANGUAGE plpgsql AS $$
DECLARE
	result pg_catalog.bool;
	before CONSTANT pg_catalog.text := pg_catalog.current_setting(setting);
BEGIN
	BEGIN
		PERFORM pg_catalog.set_config(setting, value, false);
	EXCEPTION WHEN feature_not_supported THEN
		-- 19 knows only standard_conforming_strings = on.
		RETURN setting OPERATOR(pg_catalog.=) 'standard_conforming_strings';
	END;
	result := public.hostile_session() OPERATOR(pg_catalog.=) (SELECT said FROM public.hostile_reference WHERE role OPERATOR(pg_catalog.=) CASE WHEN pg_catalog.current_setting('is_superuser') OPERATOR(pg_catalog.=) 'on' THEN 'operator' ELSE 'application' END);
	PERFORM pg_catalog.set_config(setting, before, false);
	RETURN result;
END $$;
SELECT path, pg_temp.same('search_path', path) AS as_it_should_be
FROM unnest(ARRAY['pg_temp, public, pg_catalog', 'public, pg_catalog', 'public', '', 'public, pg_catalog, pg_temp', 'idempotency', 'pg_temp', 'no_such_schema', 'public, idempotency, pg_catalog']) path;
-- The forged row has not been replayed, and nothing was written there.
SELECT * FROM pg_temp.idempotency_keys;
SELECT last_value, is_called FROM pg_temp.token_seq;

-- The same as superuser, with the operator's calls, whom the role would like to
-- execute what is its own.
RESET ROLE;
SELECT path, pg_temp.same('search_path', path) AS as_it_should_be
FROM unnest(ARRAY['pg_temp, public, pg_catalog', 'public, pg_catalog', 'public', '', 'idempotency']) path;

-- Whatever the planner is told, and whatever else changes how values look.
SELECT setting, value, pg_temp.same(setting, value) AS as_it_should_be
FROM (VALUES ('plan_cache_mode', 'force_custom_plan'), ('plan_cache_mode', 'force_generic_plan'), ('enable_seqscan', 'off'), ('enable_indexscan', 'off'), ('enable_indexonlyscan', 'off'),
	('enable_bitmapscan', 'off'), ('enable_tidscan', 'off'), ('enable_sort', 'off'), ('enable_nestloop', 'off'), ('enable_material', 'off'), ('cpu_tuple_cost', '1e10'), ('random_page_cost', '1e10'),
	('jit_above_cost', '0'), ('transform_null_equals', 'on'), ('standard_conforming_strings', 'off'), ('bytea_output', 'escape'), ('datestyle', 'SQL, DMY'), ('intervalstyle', 'sql_standard'),
	('timezone', 'Pacific/Kiritimati'), ('quote_all_identifiers', 'on'), ('array_nulls', 'off'), ('row_security', 'off'), ('session_replication_role', 'replica'), ('default_transaction_read_only', 'on'),
	('default_toast_compression', 'pglz'), ('work_mem', '64kB'), ('check_function_bodies', 'off'), ('constraint_exclusion', 'on')) s (setting, value);
-- What the calls pin for themselves does not stay.
SHOW enable_seqscan;
SHOW enable_indexscan;
SHOW enable_tidscan;
SHOW plan_cache_mode;
-- All of it off at once, in a new connection, so that plans are made under it.
\c -
SET enable_seqscan = off;
SET enable_indexscan = off;
SET enable_bitmapscan = off;
SET enable_tidscan = off;
SET plan_cache_mode = force_custom_plan;
SET search_path = public, pg_catalog;
SELECT public.hostile_session() OPERATOR(pg_catalog.=) said AS as_it_should_be FROM public.hostile_reference WHERE role OPERATOR(pg_catalog.=) 'operator';
-- And they are still what the user set.
SHOW enable_seqscan;
SHOW enable_indexscan;
SHOW enable_tidscan;
SHOW plan_cache_mode;
SHOW search_path;
-- Also after an error inside.
CREATE FUNCTION public.hostile_trigger() RETURNS pg_catalog.trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''refused''; END';
BEGIN;
SET LOCAL lock_timeout = '10s';
CREATE TRIGGER refuse BEFORE INSERT ON idempotency.idempotency_keys FOR EACH ROW EXECUTE FUNCTION public.hostile_trigger();
SAVEPOINT s;
SELECT outcome FROM idempotency.claim('hostile', 'error', 'k', lease => '1 hour');
ROLLBACK TO s;
SHOW enable_seqscan;
SHOW plan_cache_mode;
SHOW search_path;
SELECT current_user OPERATOR(pg_catalog.=) session_user AS still_me;
ROLLBACK;
DROP FUNCTION public.hostile_trigger;
RESET ALL;

DROP TABLE public.hostile_reference;
DROP FUNCTION public.hostile_session;
SET client_min_messages = warning;
DROP OWNED BY regress_hostile CASCADE;
DROP ROLE regress_hostile;
