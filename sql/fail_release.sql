-- fail() lets the next attempt begin; release() undoes the claim.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;

-- Failed in its own transaction, with the business rows that say so.
CREATE TEMP TABLE ledger (what text);
BEGIN;
SELECT outcome FROM idempotency.claim('fail_release', 'fail', 'own', '{"a": 1}', note => 'trace 1');
INSERT INTO ledger VALUES ('refused');
SELECT idempotency.fail('fail_release', 'fail', 'own', 'card declined');
COMMIT;
SELECT * FROM ledger;
SELECT status, attempt, token, last_error, note, fingerprint = idempotency.fingerprint('{"a": 1}') AS fingerprint, locked_until, completed_at,
	   expires_at - claimed_at >= interval '24 hours' AS remembered
FROM idempotency.lookup('fail_release', 'fail', 'own');
-- The next claim gets the key at once, and the earlier error with it.
BEGIN;
SELECT outcome, attempt, taken_over, last_error, fingerprint_checked FROM idempotency.claim('fail_release', 'fail', 'own', '{"a": 1}');
SELECT idempotency.complete('fail_release', 'fail', 'own', 200, 'second try') > now() AS done;
COMMIT;
SELECT status, attempt, token, last_error, note FROM idempotency.lookup('fail_release', 'fail', 'own');
SELECT outcome, attempt, response_body, last_error FROM idempotency.claim('fail_release', 'fail', 'own');

-- With a lease. No error is fine, too; the number goes up by one each time, the
-- token every time.
SELECT token AS first FROM idempotency.claim('fail_release', 'fail', 'leased', lease => '1 hour') \gset
SELECT idempotency.fail('fail_release', 'fail', 'leased', 'first', token => :first);
SELECT attempt, token > :first AS larger, last_error, token AS second FROM idempotency.claim('fail_release', 'fail', 'leased', lease => '1 hour') \gset
\echo :attempt :larger :last_error
SELECT idempotency.fail('fail_release', 'fail', 'leased', token => :second);
SELECT outcome, attempt, token > :second AS larger, last_error IS NULL AS no_error, taken_over FROM idempotency.claim('fail_release', 'fail', 'leased', lease => '1 hour');
-- An attempt without a lease over one with: it has no token, and the earlier
-- ones are worth nothing any more.
SELECT token AS first FROM idempotency.claim('fail_release', 'fail', 'mixed', lease => '1 us') \gset
BEGIN;
SELECT outcome, attempt, token, taken_over FROM idempotency.claim('fail_release', 'fail', 'mixed');
SELECT idempotency.fail('fail_release', 'fail', 'mixed', 'second');
COMMIT;
SELECT status, attempt, token > :first AS larger FROM idempotency.lookup('fail_release', 'fail', 'mixed');
SELECT idempotency.complete('fail_release', 'fail', 'mixed', token => :first);
\echo :SQLSTATE

-- retry_in: nobody gets the key before, then anybody.
SELECT idempotency.fail('fail_release', 'retry', '1', 'busy', '1 hour', token) FROM idempotency.claim('fail_release', 'retry', '1', lease => '1 min');
SELECT outcome, attempt, retry_after_ms BETWEEN 3590000 AND 3600000 AS what_is_left FROM idempotency.claim('fail_release', 'retry', '1');
SELECT status, abandoned, locked_until > now() + interval '59 min' AS until_then FROM idempotency.lookup('fail_release', 'retry', '1');
SELECT idempotency.fail('fail_release', 'retry', '2', 'busy', '20 ms', token) FROM idempotency.claim('fail_release', 'retry', '2', lease => '1 min');
SELECT outcome, attempt, last_error FROM idempotency.claim('fail_release', 'retry', '2', lease => '1 min', wait => '50 s');
-- Zero is at once.
SELECT idempotency.fail('fail_release', 'retry', '3', 'busy', '0', token) FROM idempotency.claim('fail_release', 'retry', '3', lease => '1 min');
SELECT outcome, attempt FROM idempotency.claim('fail_release', 'retry', '3', lease => '1 min');
-- The failed key is remembered failed_ttl from then on.
SET idempotency.failed_ttl = '2h';
SELECT idempotency.fail('fail_release', 'retry', '4', 'busy', '5 hours', token) FROM idempotency.claim('fail_release', 'retry', '4', lease => '1 min', ttl => '1 hour');
SELECT expires_at - locked_until AS remembered FROM idempotency.lookup('fail_release', 'retry', '4');
RESET idempotency.failed_ttl;

-- A failed attempt's error and what it knew of the request are kept until the
-- next one ends.
SELECT idempotency.fail('fail_release', 'kept', '1', 'first', token => token) FROM idempotency.claim('fail_release', 'kept', '1', '{"a": 1}', lease => '1 min');
SELECT outcome FROM idempotency.claim('fail_release', 'kept', '1', '{"a": 2}');
SELECT outcome, last_error FROM idempotency.claim('fail_release', 'kept', '1', lease => '1 min');
SELECT status, last_error, fingerprint = idempotency.fingerprint('{"a": 1}') AS fingerprint FROM idempotency.lookup('fail_release', 'kept', '1');

-- release(): a first attempt leaves no row, with a lease or without.
BEGIN;
SELECT outcome FROM idempotency.claim('fail_release', 'release', 'own');
SELECT idempotency.release('fail_release', 'release', 'own');
COMMIT;
SELECT count(*) FROM idempotency.lookup('fail_release', 'release', 'own');
SELECT idempotency.release('fail_release', 'release', 'leased', token) FROM idempotency.claim('fail_release', 'release', 'leased', lease => '1 min');
SELECT count(*) FROM idempotency.idempotency_keys WHERE scope = 'fail_release' AND operation = 'release';
-- A later one goes back to how the last failure left it.
SELECT idempotency.fail('fail_release', 'release', 'second', 'first', token => token) FROM idempotency.claim('fail_release', 'release', 'second', lease => '1 min');
SELECT outcome, attempt, token FROM idempotency.claim('fail_release', 'release', 'second', lease => '1 min') \gset
\echo :outcome :attempt
SELECT idempotency.release('fail_release', 'release', 'second', :token);
SELECT status, attempt, last_error, locked_until FROM idempotency.lookup('fail_release', 'release', 'second');
SELECT idempotency.release('fail_release', 'release', 'second', :token);
\echo :SQLSTATE
SELECT outcome, attempt, last_error FROM idempotency.claim('fail_release', 'release', 'second', lease => '1 min');
-- Without a lease there was nothing to undo in the first place.
SELECT idempotency.fail('fail_release', 'release', 'third', 'first', token => token) FROM idempotency.claim('fail_release', 'release', 'third', lease => '1 min');
BEGIN;
SELECT outcome, attempt FROM idempotency.claim('fail_release', 'release', 'third');
SELECT idempotency.release('fail_release', 'release', 'third');
COMMIT;
SELECT status, attempt, last_error FROM idempotency.lookup('fail_release', 'release', 'third');
-- Released and claimed again within one transaction.
BEGIN;
SELECT outcome, attempt FROM idempotency.claim('fail_release', 'release', 'fourth', lease => '1 min');
SELECT idempotency.release('fail_release', 'release', 'fourth');
SELECT outcome, attempt, token FROM idempotency.claim('fail_release', 'release', 'fourth');
SELECT idempotency.complete('fail_release', 'release', 'fourth', 200) > now() AS done;
SELECT idempotency.release('fail_release', 'release', 'fourth');
\echo :SQLSTATE
ROLLBACK;
SELECT count(*) FROM idempotency.lookup('fail_release', 'release', 'fourth');

-- A failure that is recorded after its transaction was rolled back: one call,
-- in which nobody else can get the key.
BEGIN;
SELECT outcome FROM idempotency.claim('fail_release', 'record', '1', '{"a": 1}');
ROLLBACK;
SELECT idempotency.record_failure('fail_release', 'record', '1', 'the bank is down', '1 hour', request => '{"a": 1}') AS recorded;
SELECT status, attempt, last_error, locked_until > now() AS later FROM idempotency.lookup('fail_release', 'record', '1');
SELECT outcome, rival, locked_until > now() + interval '50 min' AS later, retry_after_ms > 3000000 AS all_of_it FROM idempotency.claim('fail_release', 'record', '1', '{"a": 1}');
SELECT outcome FROM idempotency.claim('fail_release', 'record', '1', '{"a": 2}');
-- The next attempt's failure counts on.
UPDATE idempotency.idempotency_keys SET locked_until = now() WHERE scope = 'fail_release' AND operation = 'record';
SELECT idempotency.record_failure('fail_release', 'record', '1', 'still down') AS recorded;
SELECT status, attempt, last_error FROM idempotency.lookup('fail_release', 'record', '1');
-- Of a claim that is open in this transaction it is fail().
BEGIN;
SELECT outcome, attempt FROM idempotency.claim('fail_release', 'record', '1');
SELECT idempotency.record_failure('fail_release', 'record', '1', 'no') AS recorded;
COMMIT;
SELECT status, attempt, last_error FROM idempotency.lookup('fail_release', 'record', '1');
-- Not of what somebody else has or has done by now.
SELECT outcome FROM idempotency.claim('fail_release', 'record', 'leased', lease => '5 min');
SELECT idempotency.once('fail_release', 'record', 'done');
SELECT idempotency.record_failure('fail_release', 'record', key, 'late') AS recorded FROM unnest(ARRAY['leased', 'done']) AS key;
SELECT status, last_error FROM unnest(ARRAY['leased', 'done']) AS key, LATERAL idempotency.lookup('fail_release', 'record', key);
-- The last attempt that a policy allows is held.
SELECT idempotency.set_policy('record twice', max_attempts => 2);
SELECT idempotency.record_failure('fail_release', 'record twice', '1', 'one') AS first, idempotency.record_failure('fail_release', 'record twice', '1', 'two') AS second;
SELECT status, attempt, last_error FROM idempotency.lookup('fail_release', 'record twice', '1');
SELECT idempotency.drop_policy('record twice');
