-- claim() and the owner's calls while a rival is in an open transaction; here a
-- prepared one, which needs max_prepared_transactions.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
-- From 19 on, a context says which lock was waited for.
\set SHOW_CONTEXT never

CREATE FUNCTION pg_temp.key_locks() RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM pg_locks
	WHERE locktype = 'advisory' AND objsubid = 18756 AND pid = pg_backend_pid()
$$;
SELECT outcome FROM idempotency.claim('claim_rival', 'wait', 'leased', lease => '1 hour');

BEGIN;
SELECT outcome FROM idempotency.claim('claim_rival', 'rival', '1', '{"a": 1}', lease => '1 hour');
PREPARE TRANSACTION 'claim_rival';
-- Nobody knows when it ends or what it wrote, so a mismatch is not seen.
SELECT outcome, attempt, retry_after_ms, fingerprint_checked, rival, locked_until FROM idempotency.claim('claim_rival', 'rival', '1', '{"b": 1}');
-- Its lock is waited for, within bounds; the setting that bounds it is put back.
SET lock_timeout = '50s';
BEGIN;
SELECT outcome, retry_after_ms FROM idempotency.claim('claim_rival', 'rival', '1', wait => '30 ms');
SELECT clock_timestamp() >= now() + interval '30 ms' AS waited, pg_temp.key_locks();
SHOW lock_timeout;
COMMIT;
-- The user's own bound rules where it is shorter, with its error.
SET lock_timeout = '10ms';
SELECT outcome FROM idempotency.claim('claim_rival', 'rival', '1', wait => '50 s');
\echo :SQLSTATE
SHOW lock_timeout;
BEGIN;
SELECT outcome FROM idempotency.claim('claim_rival', 'rival', '1', wait => '50 s');
ROLLBACK;
SHOW lock_timeout;
RESET lock_timeout;
-- Timed out or cancelled while waiting, the connection goes on.
SET statement_timeout = '500ms';
SELECT outcome FROM idempotency.claim('claim_rival', 'rival', '1', wait => '50 s');
\echo :SQLSTATE
SELECT outcome FROM idempotency.claim('claim_rival', 'wait', 'leased', wait => '50 s');
\echo :SQLSTATE
RESET statement_timeout;
BEGIN;
SET LOCAL statement_timeout = '30ms';
SELECT outcome FROM idempotency.claim('claim_rival', 'rival', '1', wait => '50 s');
SELECT 'not executed';
ROLLBACK;
BEGIN;
SAVEPOINT s;
SET LOCAL statement_timeout = '30ms';
SELECT outcome FROM idempotency.claim('claim_rival', 'rival', '1', wait => '50 s');
ROLLBACK TO s;
SELECT outcome FROM idempotency.claim('claim_rival', 'pay', '1', lease => '1 hour');
SELECT pg_temp.key_locks();
COMMIT;
SHOW lock_timeout;
-- The owner's calls wait for the key's lock, bounded by lock_timeout.
SET lock_timeout = '10ms';
SELECT idempotency.complete('claim_rival', 'rival', '1', 200, token => 1);
\echo :SQLSTATE
SELECT idempotency.fail('claim_rival', 'rival', '1', token => 1);
\echo :SQLSTATE
SELECT idempotency.release('claim_rival', 'rival', '1', token => 1);
\echo :SQLSTATE
SELECT idempotency.extend('claim_rival', 'rival', '1', token => 1);
\echo :SQLSTATE
SELECT idempotency.forget('claim_rival', 'rival', '1', true);
\echo :SQLSTATE
RESET lock_timeout;
-- What looks without touching does not.
SELECT count(*) FROM idempotency.replay('claim_rival', 'rival', '1');
SELECT count(*) FROM idempotency.lookup('claim_rival', 'rival', '1');
ROLLBACK PREPARED 'claim_rival';
SELECT outcome, attempt FROM idempotency.claim('claim_rival', 'rival', '1', lease => '1 hour', wait => '50 s');
