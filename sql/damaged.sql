-- Rows that none of the calls writes, by the hand of who may: nobody crashes, and who
-- cannot go on says what is wrong.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
\set SHOW_CONTEXT never

-- A status that is none.
SELECT idempotency.once('damaged', 'op', 'status') AS first;
UPDATE idempotency.idempotency_keys SET status = 'done' WHERE scope = 'damaged' AND key = 'status';
SELECT outcome FROM idempotency.claim('damaged', 'op', 'status');
\echo :LAST_ERROR_SQLSTATE
SELECT idempotency.once('damaged', 'op', 'status');
SELECT * FROM idempotency.replay('damaged', 'op', 'status');
SELECT status FROM idempotency.lookup('damaged', 'op', 'status');
UPDATE idempotency.idempotency_keys SET status = 'completed' WHERE scope = 'damaged' AND key = 'status';
SELECT outcome FROM idempotency.claim('damaged', 'op', 'status');

-- An identity that is longer than any setting allows: it is taken over like others.
INSERT INTO idempotency.idempotency_keys (created_at, expires_at, attempt, token, lease_ms, claimed_at, locked_until, scope, operation, key, status)
VALUES (now() - interval '1 h', now() + interval '1 h', 1, 1, 1000, now() - interval '1 h', now() - interval '1 h', 'damaged', 'long', repeat('x', 3000), 'in_progress');
SELECT scope, length(key) AS key, attempt FROM idempotency.claim_abandoned('long', '5 min');
SELECT count(*) AS locks FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 18756;
SELECT outcome FROM idempotency.claim('damaged', 'long', repeat('x', 3000));
\echo :LAST_ERROR_SQLSTATE

-- A small table that is not where it was.
BEGIN;
ALTER TABLE idempotency.policies RENAME TO rules;
SELECT idempotency.set_policy('damaged', ttl => '1 h');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN;
ALTER TABLE idempotency.policies RENAME TO rules;
SELECT outcome FROM idempotency.claim('damaged', 'op', 'no policies', lease => '1 h');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;

SELECT idempotency.forget_scope('damaged', force => true);
