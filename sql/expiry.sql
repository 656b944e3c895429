-- An expired key counts as absent from that moment on, deleted or not; clean-up
-- deletes what has expired and nothing else.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
-- What other tests left is not to be counted here.
SELECT idempotency.cleanup() >= 0 AS done;

-- Waits until a key has expired, which a lifetime of milliseconds does soon.
CREATE FUNCTION pg_temp.wait_for_expiry(k text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1..5000 LOOP
		IF NOT EXISTS (SELECT FROM idempotency.lookup('expiry', 'key', k)) THEN
			RETURN;
		END IF;
		PERFORM pg_sleep(0.001);
	END LOOP;
	RAISE 'did not expire';
END $$;
-- Makes a key a number of days older, to save the time.
CREATE FUNCTION pg_temp.age(k text, days int) RETURNS bigint LANGUAGE sql AS $$
	WITH aged AS (
		UPDATE idempotency.idempotency_keys
		SET created_at = created_at - days * interval '24 hours', expires_at = expires_at - days * interval '24 hours',
			completed_at = completed_at - days * interval '24 hours', claimed_at = claimed_at - days * interval '24 hours',
			locked_until = locked_until - days * interval '24 hours'
		WHERE scope = 'expiry' AND key = k RETURNING 1)
	SELECT count(*) FROM aged
$$;

-- Completed: replayed until then, unknown afterwards, and free to be claimed as
-- if it had never been there, by another request, too.
SELECT idempotency.complete('expiry', 'key', 'completed', 200, 'first', token => token, ttl => '100 ms') AS until FROM idempotency.claim('expiry', 'key', 'completed', '{"a": 1}', lease => '1 hour', note => 'trace 1') \gset
SELECT pg_temp.wait_for_expiry('completed');
SELECT clock_timestamp() >= :'until' AS not_before;
SELECT count(*) FROM idempotency.idempotency_keys WHERE scope = 'expiry' AND key = 'completed';
SELECT count(*) FROM idempotency.replay('expiry', 'key', 'completed');
SELECT count(*) FROM idempotency.lookup('expiry', 'key', 'completed');
SELECT idempotency.forget('expiry', 'key', 'absent') AS absent;
BEGIN;
SELECT idempotency.forget('expiry', 'key', 'completed') AS like_absent;
ROLLBACK;
SELECT token AS old_token FROM idempotency.idempotency_keys WHERE scope = 'expiry' AND key = 'completed' \gset
SELECT outcome, attempt, taken_over, last_error, fingerprint_checked, created_at > now() - interval '1 min' AND created_at >= :'until' AS new_life, token > :old_token AS larger
FROM idempotency.claim('expiry', 'key', 'completed', '{"b": 1}', lease => '1 hour');
-- Nothing of the earlier life is left.
SELECT status, attempt, note, last_error, completed_at, fingerprint = idempotency.fingerprint('{"b": 1}') AS fingerprint FROM idempotency.lookup('expiry', 'key', 'completed');
SELECT response_status, response_body FROM idempotency.idempotency_keys WHERE scope = 'expiry' AND key = 'completed';

-- Failed.
SELECT idempotency.fail('expiry', 'key', 'failed', 'broken', token => token) FROM idempotency.claim('expiry', 'key', 'failed', '{"a": 1}', lease => '1 hour');
SELECT pg_temp.age('failed', 2);
SELECT count(*) FROM idempotency.lookup('expiry', 'key', 'failed');
SELECT outcome, attempt, last_error, fingerprint_checked FROM idempotency.claim('expiry', 'key', 'failed', '{"b": 1}', lease => '1 hour');
-- A failed key is remembered at least until it may be tried again.
SELECT idempotency.fail('expiry', 'key', 'retry', 'broken', '3 days', token => token) FROM idempotency.claim('expiry', 'key', 'retry', lease => '1 hour', ttl => '1 hour');
SELECT expires_at > locked_until AS remembered FROM idempotency.lookup('expiry', 'key', 'retry');

-- Unfinished and ownerless: gone with its lifetime ...
SELECT token FROM idempotency.claim('expiry', 'key', 'open', '{"a": 1}', lease => '1 ms', ttl => '2 ms') \gset
SELECT pg_temp.wait_for_expiry('open');
SELECT outcome, attempt, taken_over, token > :token AS larger FROM idempotency.claim('expiry', 'key', 'open', '{"b": 1}', lease => '1 hour');
-- ... but a live lease is never cut short by it ...
SELECT token FROM idempotency.claim('expiry', 'key', 'live', '{"a": 1}', lease => '5 days', ttl => '1 day') \gset
SELECT pg_temp.age('live', 2);
SELECT status, abandoned, expires_at < now() AS beyond_its_lifetime FROM idempotency.lookup('expiry', 'key', 'live');
SELECT outcome FROM idempotency.claim('expiry', 'key', 'live', '{"a": 1}', lease => '1 hour');
SELECT outcome FROM idempotency.claim('expiry', 'key', 'live', '{"b": 1}', lease => '1 hour');
SELECT idempotency.forget('expiry', 'key', 'live');
\echo :SQLSTATE
SELECT idempotency.cleanup();
-- ... and its owner gets half of the lifetime for the answer.
BEGIN;
SELECT idempotency.complete('expiry', 'key', 'live', 200, 'late', token => :token) BETWEEN now() + interval '12 hours' AND clock_timestamp() + interval '12 hours' AS half;
COMMIT;
SELECT outcome, response_body FROM idempotency.claim('expiry', 'key', 'live', '{"a": 1}');
-- Extended in time, it lives on beyond its lifetime, too.
SELECT token FROM idempotency.claim('expiry', 'key', 'extended', lease => '5 days', ttl => '1 day') \gset
SELECT pg_temp.age('extended', 2);
SELECT idempotency.extend('expiry', 'key', 'extended', '1 hour', :token) > now() AS done;
SELECT idempotency.cleanup();
SELECT status, abandoned FROM idempotency.lookup('expiry', 'key', 'extended');
-- Abandoned with hold_if_abandoned: never gone by itself.
SELECT token FROM idempotency.claim('expiry', 'key', 'held', lease => '1 day', ttl => '1 day', hold_if_abandoned => true) \gset
SELECT pg_temp.age('held', 300);
SELECT idempotency.cleanup();
SELECT status, abandoned FROM idempotency.lookup('expiry', 'key', 'held');
SELECT outcome FROM idempotency.claim('expiry', 'key', 'held');
SELECT idempotency.complete('expiry', 'key', 'held', 200, 'after all', token => :token) > now() AS done;

-- Clean-up: deletes what has expired, says how many, and can be told to leave
-- what expired lately, or to do a part of it.
SELECT idempotency.forget_scope('expiry', true) > 0 AS cleared;
BEGIN;
SELECT count(*) FROM generate_series(1, 10) i, LATERAL idempotency.claim('expiry', 'batch', 'completed ' || i), LATERAL idempotency.complete('expiry', 'batch', 'completed ' || i, 200);
SELECT count(*) FROM generate_series(1, 5) i, LATERAL idempotency.claim('expiry', 'batch', 'failed ' || i), LATERAL idempotency.fail('expiry', 'batch', 'failed ' || i, 'broken');
COMMIT;
SELECT count(*) FROM generate_series(1, 4) i, LATERAL idempotency.claim('expiry', 'batch', 'open ' || i, lease => '1 hour');
SELECT count(*) FROM generate_series(1, 3) i, LATERAL idempotency.claim('expiry', 'batch', 'live ' || i, lease => '100 days');
SELECT count(*) FROM generate_series(1, 2) i, LATERAL idempotency.claim('expiry', 'batch', 'held ' || i, lease => '1 hour', hold_if_abandoned => true);
-- Nothing has expired.
SELECT idempotency.cleanup();
SELECT sum(pg_temp.age(key, 2)) FROM idempotency.idempotency_keys WHERE scope = 'expiry' AND operation = 'batch';
SELECT sum(pg_temp.age(key, 10)) FROM idempotency.idempotency_keys WHERE scope = 'expiry' AND key IN ('completed 1', 'failed 1', 'open 1', 'live 1', 'held 1');
SELECT idempotency.cleanup(older_than => '30 days');
SELECT idempotency.cleanup(older_than => '5 days');
SELECT idempotency.cleanup(max_rows => 0);
SELECT idempotency.cleanup(max_rows => 4);
SELECT idempotency.cleanup('1 hour', 5);
SELECT idempotency.cleanup('20 hours');
SELECT idempotency.cleanup();
SELECT key, status FROM idempotency.idempotency_keys WHERE scope = 'expiry' AND operation = 'batch' ORDER BY key;
-- Rolled back, it has deleted nothing.
BEGIN;
SELECT count(*) FROM idempotency.claim('expiry', 'key', 'undone'), LATERAL idempotency.complete('expiry', 'key', 'undone', 200);
COMMIT;
SELECT pg_temp.age('undone', 2);
BEGIN;
SELECT idempotency.cleanup();
ROLLBACK;
SELECT idempotency.cleanup();

-- An expired key is claimed, cleaned up, and then completed: the completion's
-- row is not there to be changed, so it is put in.
BEGIN;
SELECT count(*) FROM idempotency.claim('expiry', 'key', 'vanishing'), LATERAL idempotency.complete('expiry', 'key', 'vanishing', 200, 'first life');
COMMIT;
SELECT pg_temp.age('vanishing', 2);
BEGIN;
SELECT outcome, attempt FROM idempotency.claim('expiry', 'key', 'vanishing');
SELECT idempotency.cleanup();
SELECT count(*) FROM idempotency.idempotency_keys WHERE scope = 'expiry' AND key = 'vanishing';
SELECT idempotency.complete('expiry', 'key', 'vanishing', 200, 'second life') > now() AS done;
COMMIT;
SELECT outcome, attempt, response_body FROM idempotency.claim('expiry', 'key', 'vanishing');
-- The same for a failure, and for release, which has nothing to do.
SELECT pg_temp.age('vanishing', 2);
BEGIN;
SELECT outcome, attempt FROM idempotency.claim('expiry', 'key', 'vanishing');
SELECT idempotency.cleanup();
SELECT idempotency.fail('expiry', 'key', 'vanishing', 'third life');
COMMIT;
SELECT status, attempt, last_error FROM idempotency.lookup('expiry', 'key', 'vanishing');
SELECT pg_temp.age('vanishing', 2);
BEGIN;
SELECT outcome, attempt FROM idempotency.claim('expiry', 'key', 'vanishing');
SELECT idempotency.cleanup();
SELECT idempotency.release('expiry', 'key', 'vanishing');
COMMIT;
SELECT count(*) FROM idempotency.lookup('expiry', 'key', 'vanishing');
-- An unfinished claim that was cleaned up is lost to its late owner.
SELECT token FROM idempotency.claim('expiry', 'key', 'lost', lease => '1 hour') \gset
SELECT pg_temp.age('lost', 2);
SELECT idempotency.cleanup();
SELECT idempotency.complete('expiry', 'key', 'lost', 200, token => :token);
\echo :SQLSTATE

-- An expired key that nobody has deleted does not grow the table when it is
-- claimed anew: it is the same row.
SELECT count(*) FROM idempotency.claim('expiry', 'key', 'anew', lease => '1 ms', ttl => '2 ms');
SELECT pg_temp.wait_for_expiry('anew');
SELECT outcome, attempt FROM idempotency.claim('expiry', 'key', 'anew', lease => '1 hour');
SELECT count(*) FROM idempotency.idempotency_keys WHERE scope = 'expiry' AND key = 'anew';
SELECT idempotency.forget_scope('expiry', true) > 0 AS cleared;
