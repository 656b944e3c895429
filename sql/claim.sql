-- claim(): who may do the work, and what everybody else is told.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;

CREATE TEMP TABLE ledger (amount int);
CREATE FUNCTION pg_temp.key_locks() RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM pg_locks
	WHERE locktype = 'advisory' AND objsubid = 18756 AND pid = pg_backend_pid()
$$;

-- Four statements, and the same again: the work is done once.
BEGIN;
SELECT outcome, token, attempt, taken_over FROM idempotency.claim('claim', 'pay', '1', '{"amount": 10}');
INSERT INTO ledger VALUES (10);
SELECT idempotency.complete('claim', 'pay', '1', 201, '{"id":  7}') > now() AS done;
SELECT pg_temp.key_locks();
COMMIT;
BEGIN;
SELECT outcome, token, attempt, response_status, response_body, fingerprint_checked FROM idempotency.claim('claim', 'pay', '1', '{"amount": 10}');
SELECT pg_temp.key_locks();
COMMIT;
SELECT * FROM ledger;

-- A rollback frees the key at that moment.
BEGIN;
SELECT outcome FROM idempotency.claim('claim', 'pay', '2');
ROLLBACK;
SELECT count(*) FROM idempotency.lookup('claim', 'pay', '2');
BEGIN;
SELECT outcome, attempt FROM idempotency.claim('claim', 'pay', '2');
ROLLBACK;

-- The columns of the result, in their order. New ones come after these.
SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum)
FROM pg_attribute WHERE attrelid = 'idempotency.claim_result'::regclass AND attnum BETWEEN 1 AND 18;
-- All that is not NULL, for every outcome; what differs from run to run is "set".
CREATE FUNCTION pg_temp.whole(k text, request jsonb) RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_object_agg(key, CASE WHEN key ~ '_at$|token|retry_after|locked_until' THEN '"set"' ELSE value END)
	FROM idempotency.claim('claim', 'whole', k, request, lease => '1 hour') c, jsonb_each(jsonb_strip_nulls(to_jsonb(c)))
$$;
SELECT pg_temp.whole('a', '{}') AS claimed;
SELECT pg_temp.whole('a', '{}') AS in_progress;
SELECT pg_temp.whole('a', '[]') AS mismatch;
SELECT idempotency.complete('claim', 'whole', 'a', 200, 'text', '{"A": "b"}', token => token) > now() AS done FROM idempotency.lookup('claim', 'whole', 'a');
SELECT pg_temp.whole('a', '{}') AS replay;
SELECT pg_temp.whole('a', '[]') AS mismatch;
SELECT c.created_at = l.created_at AND c.completed_at = l.completed_at AND c.expires_at = l.expires_at AS as_looked_up,
	   c.expires_at = c.created_at + interval '24 hours' AS by_default
FROM idempotency.claim('claim', 'whole', 'a') c, idempotency.lookup('claim', 'whole', 'a') l;
SELECT idempotency.fail('claim', 'whole', 'b', 'no luck', token => token) FROM idempotency.claim('claim', 'whole', 'b', lease => '1 hour');
SELECT pg_temp.whole('b', '{}') AS claimed_after_failure;

-- All three parts are the identity, byte by byte.
SELECT scope, operation, convert_to(key, 'UTF8') AS key, outcome
FROM (VALUES ('claim', 'parts', 'k'), ('claim', 'part', 'sk'), ('claimp', 'arts', 'k'), ('claim', 'parts', 'K'), ('claim', 'parts', 'k '),
			 ('Claim', 'parts', 'k'), ('claim', 'parts', E'k\n'), ('claim', 'parts', U&'\00e9'), ('claim', 'parts', U&'e\0301'), ('claim', 'parts', 'k')) id (scope, operation, key),
	 LATERAL idempotency.claim(scope, operation, key, lease => '1 hour');

-- Requests are compared whenever both sides gave one, in any form.
SELECT outcome, fingerprint_checked FROM idempotency.claim('claim', 'fp', 'given', '{"a": 1, "b": [2]}', lease => '1 hour');
SELECT outcome, fingerprint_checked FROM idempotency.claim('claim', 'fp', 'given', '{"b": [2.00], "a": 1.0}');
SELECT outcome, fingerprint_checked FROM idempotency.claim('claim', 'fp', 'given', fingerprint => idempotency.fingerprint('{"a": 1, "b": [2]}'));
SELECT outcome, fingerprint_checked FROM idempotency.claim('claim', 'fp', 'given', '{"a": 1, "b": [3]}');
SELECT outcome, fingerprint_checked FROM idempotency.claim('claim', 'fp', 'given', fingerprint => sha256('something else'));
SELECT outcome, fingerprint_checked FROM idempotency.claim('claim', 'fp', 'given');
SELECT outcome, fingerprint_checked FROM idempotency.claim('claim', 'fp', 'not given', lease => '1 hour');
SELECT outcome, fingerprint_checked FROM idempotency.claim('claim', 'fp', 'not given', '{"a": 1}');
-- A JSON null is a request; no request is none.
SELECT outcome, fingerprint_checked FROM idempotency.claim('claim', 'fp', 'null', 'null', lease => '1 hour');
SELECT outcome, fingerprint_checked FROM idempotency.claim('claim', 'fp', 'null', NULL);
SELECT outcome, fingerprint_checked FROM idempotency.claim('claim', 'fp', 'null', '{}');

-- The note stays with the key.
SELECT outcome FROM idempotency.claim('claim', 'note', '1', lease => '1 hour', note => 'trace 42');
SELECT note FROM idempotency.lookup('claim', 'note', '1');

-- The lifetime, from the call or from the setting, counts from the claim.
SELECT expires_at - created_at AS lifetime FROM idempotency.claim('claim', 'ttl', '1', lease => '1 hour', ttl => '90 min');
SET idempotency.default_ttl = '2h';
SELECT expires_at - created_at AS lifetime FROM idempotency.claim('claim', 'ttl', '2', lease => '1 hour');
RESET idempotency.default_ttl;
-- A month is 30 days, a day 24 hours, whatever the calendar and the clocks do.
SET timezone = 'Europe/Berlin';
SELECT extract(epoch FROM expires_at - created_at) / 3600 AS hours FROM idempotency.claim('claim', 'ttl', '3', lease => '1 hour', ttl => '1 month 1 day');
RESET timezone;

-- The transaction's own claims: open, completed, released, failed.
BEGIN;
SELECT outcome FROM idempotency.claim('claim', 'own', '1');
SELECT outcome, retry_after_ms FROM idempotency.claim('claim', 'own', '1');
SELECT outcome, retry_after_ms FROM idempotency.claim('claim', 'own', '1', lease => '1 hour', wait => '1 hour');
SELECT idempotency.complete('claim', 'own', '1', 200, 'mine') > now() AS done;
SELECT outcome, response_body FROM idempotency.claim('claim', 'own', '1');
SELECT outcome FROM idempotency.claim('claim', 'own', '2');
SELECT idempotency.release('claim', 'own', '2');
SELECT outcome, attempt FROM idempotency.claim('claim', 'own', '2');
SELECT idempotency.fail('claim', 'own', '2', 'first');
SELECT outcome, attempt, last_error FROM idempotency.claim('claim', 'own', '2');
SELECT idempotency.fail('claim', 'own', '2', 'second');
SELECT pg_temp.key_locks();
COMMIT;
SELECT status, attempt, last_error, token FROM idempotency.lookup('claim', 'own', '2');

-- Two statements of one call each row: the function is VOLATILE and sees what
-- the rows before did.
BEGIN;
SELECT k, outcome FROM unnest(ARRAY['x', 'y', 'x']) k, LATERAL idempotency.claim('claim', 'rows', k);
SELECT count(idempotency.complete('claim', 'rows', k, 200)) FROM unnest(ARRAY['x', 'y']) k;
COMMIT;

-- Answers other than "claimed" keep no lock.
BEGIN;
SELECT outcome FROM idempotency.claim('claim', 'pay', '1');
SELECT outcome FROM idempotency.claim('claim', 'fp', 'given');
SELECT outcome FROM idempotency.claim('claim', 'fp', 'given', '{"a": "other"}');
SELECT pg_temp.key_locks();
SELECT outcome FROM idempotency.claim('claim', 'pay', '3');
SELECT pg_temp.key_locks();
-- Nor do they give back one that the transaction had.
SELECT outcome FROM idempotency.claim('claim', 'pay', '3');
SELECT pg_temp.key_locks();
ROLLBACK;
SELECT pg_temp.key_locks();

-- Waiting for a committed claim: its lease ends, or its retry_in is over.
SELECT outcome FROM idempotency.claim('claim', 'wait', 'lapses', lease => '30 ms');
SELECT outcome, attempt, taken_over FROM idempotency.claim('claim', 'wait', 'lapses', lease => '1 hour', wait => '50 s');
SELECT idempotency.fail('claim', 'wait', 'failed', 'no', '30 ms', token) FROM idempotency.claim('claim', 'wait', 'failed', lease => '1 hour');
SELECT outcome, attempt, taken_over, last_error FROM idempotency.claim('claim', 'wait', 'failed', lease => '1 hour', wait => '50 s');
-- In vain: at least as long as asked for, at most as the limit says.
BEGIN;
SELECT outcome FROM idempotency.claim('claim', 'wait', 'lapses', wait => '30 ms');
SELECT clock_timestamp() >= now() + interval '30 ms' AS waited, pg_temp.key_locks();
COMMIT;
SET idempotency.max_wait = '10ms';
BEGIN;
SELECT outcome FROM idempotency.claim('claim', 'wait', 'lapses', wait => '55 s');
SELECT clock_timestamp() < now() + interval '30 s' AS not_so_long, pg_temp.key_locks();
COMMIT;
RESET idempotency.max_wait;

-- Above READ COMMITTED, where nothing changed since the snapshot.
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT count(*) > 0 FROM ledger;
SELECT outcome FROM idempotency.claim('claim', 'iso', '1');
SELECT outcome FROM idempotency.claim('claim', 'pay', '1');
SELECT idempotency.complete('claim', 'iso', '1', 200, 'done') > now() AS done;
SELECT outcome, response_body FROM idempotency.claim('claim', 'iso', '1');
SELECT response_body FROM idempotency.replay('claim', 'iso', '1');
COMMIT;
