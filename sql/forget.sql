-- forget() deletes a key, forget_scope() all keys of a tenant; what is under way
-- or held goes only with force.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;

BEGIN;
SELECT count(*) FROM idempotency.claim('forget', 'key', 'completed'), LATERAL idempotency.complete('forget', 'key', 'completed', 200, 'body');
SELECT count(*) FROM idempotency.claim('forget', 'key', 'failed'), LATERAL idempotency.fail('forget', 'key', 'failed', 'broken', '1 hour');
COMMIT;
SELECT token FROM idempotency.claim('forget', 'key', 'live', lease => '1 hour') \gset
SELECT count(*) FROM idempotency.claim('forget', 'key', 'lapsed', lease => '1 us');
SELECT count(*) FROM idempotency.claim('forget', 'key', 'held', lease => '1 us', hold_if_abandoned => true);

-- There, and not there.
SELECT k, idempotency.forget('forget', 'key', k) AS first, idempotency.forget('forget', 'key', k) AS again FROM unnest(ARRAY['completed', 'failed', 'never there']) k;
-- The same request would be executed again.
BEGIN;
SELECT outcome, attempt, last_error FROM idempotency.claim('forget', 'key', 'completed');
SELECT outcome, attempt, last_error FROM idempotency.claim('forget', 'key', 'failed');
ROLLBACK;
-- Under way, or of unknown outcome.
SELECT idempotency.forget('forget', 'key', 'live');
\echo :SQLSTATE
SELECT idempotency.forget('forget', 'key', 'lapsed', false);
\echo :SQLSTATE
SELECT idempotency.forget('forget', 'key', 'held', NULL);
\echo :SQLSTATE
SELECT k, (SELECT status FROM idempotency.lookup('forget', 'key', k)) AS before, idempotency.forget('forget', 'key', k, true) AS first, idempotency.forget('forget', 'key', k, force => true) AS again
FROM unnest(ARRAY['live', 'lapsed', 'held']) k;
-- The owner learns it, whatever has become of the key.
SELECT idempotency.complete('forget', 'key', 'live', 200, token => :token);
\echo :SQLSTATE
SELECT outcome, attempt, token > :token AS larger, token AS next FROM idempotency.claim('forget', 'key', 'live', lease => '1 hour') \gset
\echo :outcome :attempt :larger
SELECT idempotency.complete('forget', 'key', 'live', 200, token => :token);
\echo :SQLSTATE
SELECT idempotency.complete('forget', 'key', 'live', 200, token => :next) > now() AS done;

-- It keeps the key's lock, so that nobody can claim before it commits; rolled
-- back, nothing has happened.
BEGIN;
SELECT idempotency.forget('forget', 'key', 'live');
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 18756 AND pid = pg_backend_pid();
SELECT count(*) FROM idempotency.lookup('forget', 'key', 'live');
ROLLBACK;
SELECT status FROM idempotency.lookup('forget', 'key', 'live');
BEGIN;
SAVEPOINT s;
SELECT idempotency.forget('forget', 'key', 'live');
ROLLBACK TO s;
SELECT outcome FROM idempotency.claim('forget', 'key', 'live');
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 18756 AND pid = pg_backend_pid();
COMMIT;
-- Forgotten and claimed again within one transaction.
BEGIN;
SELECT idempotency.forget('forget', 'key', 'live');
SELECT outcome, attempt FROM idempotency.claim('forget', 'key', 'live');
SELECT idempotency.complete('forget', 'key', 'live', 200, 'second') > now() AS done;
COMMIT;
SELECT response_body FROM idempotency.replay('forget', 'key', 'live');
-- One's own claim, open or completed.
BEGIN;
SELECT outcome FROM idempotency.claim('forget', 'key', 'own');
SAVEPOINT s;
SELECT idempotency.forget('forget', 'key', 'own');
\echo :SQLSTATE
ROLLBACK TO s;
SELECT idempotency.forget('forget', 'key', 'own', true);
SELECT idempotency.complete('forget', 'key', 'own', 200);
\echo :SQLSTATE
ROLLBACK TO s;
SELECT idempotency.complete('forget', 'key', 'own', 200) > now() AS done;
SELECT idempotency.forget('forget', 'key', 'own');
SELECT idempotency.complete('forget', 'key', 'own', 200);
\echo :SQLSTATE
ROLLBACK;

-- A whole scope, and no other: finished ones, the rest with force.
CREATE FUNCTION pg_temp.fill(scope text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1..20 LOOP
		PERFORM FROM idempotency.claim(scope, 'op' || i % 3, i::text), LATERAL idempotency.complete(scope, 'op' || i % 3, i::text, 200);
	END LOOP;
	PERFORM FROM idempotency.claim(scope, 'other', 'failed'), LATERAL idempotency.fail(scope, 'other', 'failed', 'broken');
	PERFORM FROM idempotency.claim(scope, 'other', 'live', lease => '1 hour');
	PERFORM FROM idempotency.claim(scope, 'other', 'lapsed', lease => '1 us');
	PERFORM FROM idempotency.claim(scope, 'other', 'held', lease => '1 us', hold_if_abandoned => true);
END $$;
SELECT pg_temp.fill('forget tenant'), pg_temp.fill('forget tenant 2'), pg_temp.fill('Forget tenant');
SELECT idempotency.forget_scope('forget tenant');
SELECT key, status FROM idempotency.idempotency_keys WHERE scope = 'forget tenant' ORDER BY key;
SELECT idempotency.forget_scope('forget tenant', false);
SELECT idempotency.forget_scope('forget tenant', true);
SELECT idempotency.forget_scope('forget tenant', true);
SELECT scope, count(*) FROM idempotency.idempotency_keys WHERE scope ILIKE 'forget tenant%' GROUP BY scope ORDER BY scope;
SELECT idempotency.forget_scope('forget ten%', true), idempotency.forget_scope('forget', true) > 0 AS those_of_this_test;
-- It takes no key locks, so more keys go than a transaction may claim, and its
-- rollback brings them back.
SET idempotency.max_claims_per_transaction = 3;
BEGIN;
SELECT idempotency.forget_scope('forget tenant 2', true);
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 18756 AND pid = pg_backend_pid();
ROLLBACK;
RESET idempotency.max_claims_per_transaction;
SELECT idempotency.forget_scope('forget tenant 2', true), idempotency.forget_scope('Forget tenant', true);
-- A claim of the same transaction whose row went with its scope.
BEGIN;
SELECT outcome, token FROM idempotency.claim('forget', 'scope', 'leased', lease => '1 hour') \gset
SELECT idempotency.forget_scope('forget', true);
SELECT idempotency.extend('forget', 'scope', 'leased', token => :token);
\echo :SQLSTATE
ROLLBACK;
BEGIN;
SELECT outcome FROM idempotency.claim('forget', 'scope', 'own');
SELECT idempotency.forget_scope('forget', true);
SELECT idempotency.complete('forget', 'scope', 'own', 200) > now() AS done;
COMMIT;
SELECT status FROM idempotency.lookup('forget', 'scope', 'own');

-- A table that inherits from ours is not ours to delete from, be the call
-- refused or not.
BEGIN;
CREATE TABLE public.forget_child () INHERITS (idempotency.idempotency_keys);
INSERT INTO public.forget_child (scope, operation, key, status, attempt, created_at, expires_at)
VALUES ('forget child', 'op', 'k', 'completed', 1, now(), now() + interval '1 hour');
DO $$
BEGIN
	PERFORM idempotency.forget_scope('forget child', true);
EXCEPTION WHEN object_not_in_prerequisite_state THEN
	NULL;
END $$;
SELECT count(*) AS still_there FROM public.forget_child;
ROLLBACK;
