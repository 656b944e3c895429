-- What an owner hangs on the table works there as it does elsewhere: no caller
-- leads it astray, and it changes nothing of the caller's session.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
\set SHOW_CONTEXT never

CREATE SCHEMA triggers_a;
CREATE SCHEMA triggers_b;
CREATE TABLE triggers_a.audit (what text);
CREATE TABLE triggers_b.audit (what text);
CREATE INDEX ON triggers_a.audit (what);
CREATE TABLE public.triggers_seen (setting text, value text);
-- What a session goes on under; a call, and how it ended.
CREATE FUNCTION public.triggers_settings() RETURNS TABLE (setting text, value text) LANGUAGE sql
	AS $$ SELECT s, pg_catalog.current_setting(s) FROM pg_catalog.unnest(ARRAY['search_path', 'enable_seqscan', 'enable_bitmapscan', 'enable_indexscan', 'enable_tidscan', 'jit', 'plan_cache_mode', 'work_mem']) s $$;
CREATE FUNCTION public.triggers_once(key text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idempotency.once('triggers', 'op', key);
	RETURN 'ok';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;

-- A trigger function's own search path is in force; one without finds nothing by
-- the caller's.
CREATE FUNCTION public.triggers_own_path() RETURNS trigger LANGUAGE plpgsql SET search_path = triggers_a
	AS $$ BEGIN INSERT INTO audit VALUES (TG_OP); RETURN NULL; END $$;
CREATE FUNCTION public.triggers_no_path() RETURNS trigger LANGUAGE plpgsql
	AS $$ BEGIN INSERT INTO audit VALUES ('led astray'); RETURN NULL; END $$;
BEGIN;
CREATE TRIGGER own_path AFTER INSERT OR UPDATE OR DELETE ON idempotency.idempotency_keys FOR EACH ROW EXECUTE FUNCTION public.triggers_own_path();
SET LOCAL search_path = triggers_b, public;
SELECT public.triggers_once('own path');
SELECT outcome FROM idempotency.claim('triggers', 'op', 'leased', lease => '1 hour');
SELECT idempotency.complete('triggers', 'op', 'leased', 200) > now() AS done;
SELECT count(*) FROM idempotency.once_batch('triggers', 'op', ARRAY['own path', 'batch']);
SELECT idempotency.forget_scope('triggers');
SELECT what, count(*) FROM triggers_a.audit GROUP BY what ORDER BY what;
SELECT count(*) FROM triggers_b.audit;
ROLLBACK;
BEGIN;
CREATE TRIGGER no_path AFTER INSERT ON idempotency.idempotency_keys FOR EACH ROW EXECUTE FUNCTION public.triggers_no_path();
SET LOCAL search_path = triggers_b, public;
SELECT public.triggers_once('no path');
SELECT count(*) FROM triggers_b.audit;
ROLLBACK;

-- What a trigger sets is gone with the call, and after the end of the transaction.
CREATE FUNCTION public.triggers_set() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	SET LOCAL enable_seqscan = off;
	SET enable_bitmapscan = off;
	SET LOCAL enable_indexscan = off;
	SET LOCAL plan_cache_mode = force_generic_plan;
	SET work_mem = '65kB';
	PERFORM pg_catalog.set_config('search_path', 'triggers_b', false);
	IF NEW.key = 'raise' THEN
		RAISE 'raised';
	END IF;
	RETURN NEW;
END $$;
CREATE TABLE public.triggers_before AS SELECT * FROM public.triggers_settings();
CREATE TRIGGER settings BEFORE INSERT ON idempotency.idempotency_keys FOR EACH ROW EXECUTE FUNCTION public.triggers_set();
BEGIN;
SELECT public.triggers_once('set');
SELECT * FROM public.triggers_settings() EXCEPT TABLE public.triggers_before;
SELECT public.triggers_once('raise');
SELECT * FROM public.triggers_settings() EXCEPT TABLE public.triggers_before;
COMMIT;
SELECT * FROM public.triggers_settings() EXCEPT TABLE public.triggers_before;
SELECT count(*) FROM idempotency.once_batch('triggers', 'op', ARRAY['set in a batch']);
SELECT * FROM public.triggers_settings() EXCEPT TABLE public.triggers_before;
DROP TRIGGER settings ON idempotency.idempotency_keys;
-- Nor does what is called while a statement is planned leave anything.
CREATE FUNCTION public.triggers_planned(text) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_catalog.set_config('enable_seqscan', 'off', true), pg_catalog.set_config('work_mem', '65kB', false);
	RETURN true;
END $$;
CREATE INDEX triggers_planned ON idempotency.idempotency_keys (note) WHERE public.triggers_planned('constant');
\c -
\set SHOW_CONTEXT never
BEGIN;
SELECT public.triggers_once('planned');
SELECT * FROM public.triggers_settings() EXCEPT TABLE public.triggers_before;
COMMIT;
SELECT * FROM public.triggers_settings() EXCEPT TABLE public.triggers_before;
-- Where it is the planner that asks first for what the index holds, not the writing.
\c -
SELECT idempotency.forget_scope('triggers, planned first');
SELECT * FROM public.triggers_settings() EXCEPT TABLE public.triggers_before;
DROP INDEX idempotency.triggers_planned;

-- A trigger sees the caller's settings, not those that the extension's own
-- statements are planned under, and its plans are made under them.
CREATE FUNCTION public.triggers_see() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.triggers_seen SELECT * FROM public.triggers_settings();
	PERFORM FROM triggers_a.audit AS a WHERE a.what OPERATOR(pg_catalog.=) 'a';
	RETURN NULL;
END $$;
INSERT INTO triggers_a.audit VALUES ('a');
ANALYZE triggers_a.audit;
CREATE TRIGGER see AFTER INSERT OR UPDATE OR DELETE ON idempotency.idempotency_keys FOR EACH STATEMENT EXECUTE FUNCTION public.triggers_see();
BEGIN;
SELECT public.triggers_once('see');
SELECT * FROM public.triggers_seen EXCEPT TABLE public.triggers_before ORDER BY setting;
-- The table is small: nobody would look into its index.
SELECT pg_stat_get_xact_numscans('triggers_a.audit'::regclass);
ROLLBACK;
-- Whatever these are. Our own statement keeps to its plan nevertheless, which is
-- the one thing that a trigger can tell.
\c -
\set SHOW_CONTEXT never
SET enable_indexscan = off;
SET enable_bitmapscan = off;
SET enable_tidscan = off;
SET jit = off;
SET plan_cache_mode = force_custom_plan;
SELECT pg_stat_force_next_flush();
BEGIN;
SELECT public.triggers_once('see again');
SELECT outcome FROM idempotency.claim('triggers', 'op', 'seen leased', lease => '1 hour');
SELECT idempotency.complete('triggers', 'op', 'seen leased', 200) > now() AS done;
SELECT outcome FROM idempotency.claim('triggers', 'op', 'expired', lease => '1 us', ttl => '1 us');
SELECT idempotency.cleanup() > 0 AS deleted;
SELECT DISTINCT * FROM public.triggers_seen ORDER BY setting;
SELECT pg_stat_get_xact_numscans('idempotency.idempotency_keys'::regclass);
SHOW plan_cache_mode;
ROLLBACK;
RESET ALL;
DROP TRIGGER see ON idempotency.idempotency_keys;

-- A trigger for a column hears of each write, as if all columns were written: where
-- nothing hangs on the table, only those that change are.
BEGIN;
CREATE TRIGGER note AFTER UPDATE OF note ON idempotency.idempotency_keys FOR EACH ROW EXECUTE FUNCTION public.triggers_own_path();
SELECT outcome FROM idempotency.claim('triggers', 'op', 'column', lease => '1 hour', note => 'trace');
SELECT idempotency.complete('triggers', 'op', 'column', 200) > now() AS done;
SELECT what, count(*) FROM triggers_a.audit GROUP BY what ORDER BY what;
ROLLBACK;
SELECT token FROM idempotency.claim('triggers', 'op', 'column', lease => '1 hour', note => 'trace', state => '{"step": 1}') \gset
SELECT idempotency.checkpoint('triggers', 'op', 'column', 'sent', token => :token) > now() AS renewed;
SELECT idempotency.complete('triggers', 'op', 'column', 200, response_bytes => '\x00', token => :token) > now() AS done;
SELECT status, note, state, recovery_point, response_bytes, token = :token AS token, attempt, completed_at > created_at AS completed,
	   locked_until, claim_id FROM idempotency.lookup('triggers', 'op', 'column');

SELECT idempotency.forget_scope('triggers', true) > 0 AS cleared;
SET client_min_messages = warning;
DROP SCHEMA triggers_a, triggers_b CASCADE;
DROP TABLE public.triggers_seen, public.triggers_before;
DROP FUNCTION public.triggers_settings, public.triggers_once, public.triggers_own_path, public.triggers_no_path, public.triggers_set, public.triggers_planned, public.triggers_see;
