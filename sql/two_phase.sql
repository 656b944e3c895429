-- PREPARE TRANSACTION works: the key stays claimed until the outcome is known,
-- and the connection goes on with a transaction that has claimed nothing.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
-- From 19 on, a context says which lock was waited for.
\set SHOW_CONTEXT never

CREATE TABLE two_phase_ledger (what text);
CREATE FUNCTION pg_temp.key_locks(OUT prepared bigint, OUT own bigint) LANGUAGE sql AS $$
	SELECT count(*) FILTER (WHERE pid IS NULL), count(*) FILTER (WHERE pid = pg_backend_pid())
	FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 18756
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
$$;

BEGIN;
SELECT outcome FROM idempotency.claim('two_phase', 'commit', '1');
INSERT INTO two_phase_ledger VALUES ('commit');
SELECT idempotency.complete('two_phase', 'commit', '1', 200, 'done') > now() AS done;
SELECT outcome, token > 0 AS token FROM idempotency.claim('two_phase', 'commit', '2', lease => '1 hour');
PREPARE TRANSACTION 'two_phase commit';
SELECT * FROM pg_temp.key_locks();
-- The connection remembers nothing of it: it has not claimed the key, cannot
-- complete it, and its own commit is not in the way.
SELECT outcome, retry_after_ms FROM idempotency.claim('two_phase', 'commit', '1');
SELECT outcome, retry_after_ms FROM idempotency.claim('two_phase', 'commit', '2');
BEGIN;
SELECT idempotency.complete('two_phase', 'commit', '1', 200, 'done');
\echo :SQLSTATE
ROLLBACK;
BEGIN;
SELECT outcome FROM idempotency.claim('two_phase', 'commit', '1', wait => '10 ms');
SELECT outcome FROM idempotency.claim('two_phase', 'commit', '3');
SELECT idempotency.complete('two_phase', 'commit', '3', 200) > now() AS done;
SELECT * FROM pg_temp.key_locks();
COMMIT;
-- Nobody sees the response before.
SELECT count(*) FROM idempotency.replay('two_phase', 'commit', '1');
COMMIT PREPARED 'two_phase commit';
SELECT * FROM pg_temp.key_locks();
SELECT outcome, response_body FROM idempotency.claim('two_phase', 'commit', '1');
SELECT outcome, retry_after_ms > 1000 AS what_is_left_of_the_lease FROM idempotency.claim('two_phase', 'commit', '2');
SELECT idempotency.complete('two_phase', 'commit', '2', token => token) > now() AS done FROM idempotency.lookup('two_phase', 'commit', '2');
SELECT * FROM two_phase_ledger;

-- ROLLBACK PREPARED frees the keys at that moment.
BEGIN;
SELECT outcome FROM idempotency.claim('two_phase', 'rollback', '1');
INSERT INTO two_phase_ledger VALUES ('rollback');
SELECT idempotency.complete('two_phase', 'rollback', '1', 200, 'done') > now() AS done;
SELECT outcome FROM idempotency.claim('two_phase', 'rollback', '2', lease => '1 hour');
SAVEPOINT s;
SELECT outcome FROM idempotency.claim('two_phase', 'rollback', '3');
ROLLBACK TO s;
SELECT outcome FROM idempotency.claim('two_phase', 'rollback', '4');
SELECT idempotency.release('two_phase', 'rollback', '4');
RELEASE s;
PREPARE TRANSACTION 'two_phase rollback';
SELECT * FROM pg_temp.key_locks();
SELECT k, outcome FROM unnest(ARRAY['1', '2', '4']) k, LATERAL idempotency.claim('two_phase', 'rollback', k);
-- What was rolled back to the savepoint is free already.
SELECT outcome FROM idempotency.claim('two_phase', 'rollback', '3', lease => '1 hour');
ROLLBACK PREPARED 'two_phase rollback';
SELECT * FROM pg_temp.key_locks();
SELECT k, outcome, attempt FROM unnest(ARRAY['1', '2', '4']) k, LATERAL idempotency.claim('two_phase', 'rollback', k, lease => '1 hour');
SELECT * FROM two_phase_ledger;

-- A completion by token, and a failure, in a prepared transaction: the owner
-- may not change its mind before the outcome is known, nobody takes over.
SELECT token FROM idempotency.claim('two_phase', 'token', '1', lease => '1 us') \gset
BEGIN;
SELECT idempotency.complete('two_phase', 'token', '1', 200, token => :token) > now() AS done;
PREPARE TRANSACTION 'two_phase token';
SELECT outcome, retry_after_ms FROM idempotency.claim('two_phase', 'token', '1', lease => '1 hour');
SET lock_timeout = '10ms';
SELECT idempotency.fail('two_phase', 'token', '1', token => :token);
\echo :SQLSTATE
RESET lock_timeout;
ROLLBACK PREPARED 'two_phase token';
SELECT outcome, taken_over, token > :token AS larger FROM idempotency.claim('two_phase', 'token', '1', lease => '1 hour');
SELECT idempotency.complete('two_phase', 'token', '1', 200, token => :token);
\echo :SQLSTATE

-- Prepared on a connection that ends; the next one finds the same.
BEGIN;
SELECT outcome FROM idempotency.claim('two_phase', 'connection', '1');
SELECT idempotency.complete('two_phase', 'connection', '1', 200, 'from the first') > now() AS done;
PREPARE TRANSACTION 'two_phase connection';
\c -
SELECT outcome FROM idempotency.claim('two_phase', 'connection', '1');
COMMIT PREPARED 'two_phase connection';
SELECT outcome, response_body FROM idempotency.claim('two_phase', 'connection', '1');

DROP TABLE two_phase_ledger;
