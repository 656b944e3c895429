-- claim_abandoned(): a completer drives work to its end whose owner is gone.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;

-- Two steps of the work are done, then its owner dies.
SELECT token FROM idempotency.claim('abandoned', 'aba pay', '1', '{"a": 1}', lease => '5 min', note => 'trace 7') \gset
SELECT idempotency.checkpoint('abandoned', 'aba pay', '1', 'charged', '{"charge": "ch_1"}', '1 us', :token) IS NOT NULL AS last_sign_of_life;
SELECT key, status, token = :token AS token, attempt, recovery_point, state, note, claimed_at = created_at AS first_attempt FROM idempotency.abandoned WHERE scope = 'abandoned';
SELECT scope, key, token > :token AS larger, attempt, recovery_point, state, operation, note, last_error, created_at < now() AS created_at, locked_until > now() AS locked_until FROM idempotency.claim_abandoned('aba pay');
SELECT status, abandoned, note, locked_until - claimed_at AS lease FROM idempotency.lookup('abandoned', 'aba pay', '1');
SELECT outcome FROM idempotency.claim('abandoned', 'aba pay', '1', '{"a": 1}', lease => '5 min');
-- The late owner is fenced; the completer completes with the token it got.
SELECT idempotency.complete('abandoned', 'aba pay', '1', 201, token => :token);
SELECT idempotency.complete(scope, operation, key, 201, 'by the completer', token => token) > now() AS done FROM idempotency.lookup('abandoned', 'aba pay', '1'), (VALUES ('abandoned', 'aba pay', '1')) AS v(scope, operation, key);
SELECT outcome, response_body FROM idempotency.claim('abandoned', 'aba pay', '1', '{"a": 1}', lease => '5 min');
SELECT count(*) AS nothing_left FROM idempotency.claim_abandoned('aba pay');

-- One that died before its first step left what it was given with the claim.
SELECT outcome, state FROM idempotency.claim('abandoned', 'aba state', '1', '{"a": 1}', lease => '1 us', state => '{"to": "acct_7"}');
SELECT key, attempt, recovery_point, state FROM idempotency.claim_abandoned('aba state', '1 us');
-- A takeover, also by the client that comes back, keeps the state that is there.
SELECT outcome, state FROM idempotency.claim('abandoned', 'aba state', '1', lease => '1 us', state => '{"to": "acct_8"}');
SELECT key, state FROM idempotency.claim_abandoned('aba state');

-- Which ones it takes: abandoned; not live, finished, failed, held, to be held,
-- or expired.
SELECT outcome FROM idempotency.claim('abandoned', 'aba which', 'live', lease => '5 min');
SELECT token FROM idempotency.claim('abandoned', 'aba which', 'failed', lease => '1 us') \gset
SELECT idempotency.fail('abandoned', 'aba which', 'failed', token => :token);
SELECT token FROM idempotency.claim('abandoned', 'aba which', 'held', lease => '1 us') \gset
SELECT idempotency.hold('abandoned', 'aba which', 'held', token => :token) > 0 AS held;
SELECT token FROM idempotency.claim('abandoned', 'aba which', 'done', lease => '1 us') \gset
SELECT idempotency.complete('abandoned', 'aba which', 'done', token => :token) > now() AS done;
SELECT outcome FROM idempotency.claim('abandoned', 'aba which', 'to be held', lease => '1 us', hold_if_abandoned => true);
SELECT outcome FROM idempotency.claim('abandoned', 'aba which', 'expired', lease => '1 us', ttl => '1 us');
SELECT outcome FROM idempotency.claim('abandoned', 'aba which', 'abandoned', lease => '1 us');
SELECT idempotency.once('abandoned', 'aba which', 'once');
SELECT key, status FROM idempotency.abandoned WHERE operation = 'aba which' ORDER BY key;
SELECT key, attempt FROM idempotency.claim_abandoned('aba which', '1 us');
-- Again once that lease has lapsed, too. The lease that is given, or the one
-- that the claim had, whatever a policy says.
SELECT key, attempt FROM idempotency.claim_abandoned('aba which', '7 min');
SELECT locked_until - claimed_at AS given FROM idempotency.lookup('abandoned', 'aba which', 'abandoned');
SELECT token FROM idempotency.claim('abandoned', 'aba lease', '1', lease => '9 min') \gset
SELECT idempotency.extend('abandoned', 'aba lease', '1', '1 us', :token) IS NOT NULL AS let_go;
SELECT idempotency.set_policy('aba lease', lease => '8 min', ttl => '2 days');
SELECT count(*) FROM idempotency.claim_abandoned('aba lease');
SELECT locked_until - claimed_at AS its_own, expires_at - claimed_at AS remembered FROM idempotency.lookup('abandoned', 'aba lease', '1');
SELECT idempotency.drop_policy('aba lease');

-- The oldest first, no more than asked for; every operation if none is named.
SELECT (SELECT outcome FROM idempotency.claim('abandoned', 'aba many', n::text, lease => n * interval '1 us')) FROM generate_series(1, 5) AS n;
SELECT key FROM idempotency.claim_abandoned('aba many', '5 min', max_rows => 2);
SELECT count(*) FROM idempotency.claim_abandoned('aba none', '5 min');
SELECT key FROM idempotency.claim_abandoned('aba many', '5 min');
SELECT outcome FROM idempotency.claim('abandoned', 'aba all 1', '1', lease => '1 us');
SELECT outcome FROM idempotency.claim('abandoned', 'aba all 2', '1', lease => '1 us');
SELECT operation FROM idempotency.claim_abandoned(lease => '5 min') WHERE operation LIKE 'aba all%' ORDER BY operation;

-- A policy for the operation: the last attempt that is abandoned is held.
SELECT idempotency.set_policy('aba attempts', max_attempts => 2);
SELECT outcome FROM idempotency.claim('abandoned', 'aba attempts', '1', lease => '1 us');
SELECT attempt FROM idempotency.claim_abandoned('aba attempts', '1 us');
SELECT attempt FROM idempotency.claim_abandoned('aba attempts', '1 us');
SELECT status, attempt FROM idempotency.lookup('abandoned', 'aba attempts', '1');
SELECT idempotency.drop_policy('aba attempts');
SELECT idempotency.set_policy('aba hold', hold_if_abandoned => true);
SELECT outcome FROM idempotency.claim('abandoned', 'aba hold', '1', lease => '1 us', hold_if_abandoned => false);
SELECT attempt FROM idempotency.claim_abandoned('aba hold', '1 us');
SELECT status FROM idempotency.lookup('abandoned', 'aba hold', '1');
SELECT idempotency.drop_policy('aba hold');

-- What this transaction has claimed itself is not offered to it; a rolled-back
-- takeover was none.
BEGIN;
SELECT outcome FROM idempotency.claim('abandoned', 'aba own', '1', lease => '1 us');
SELECT count(*) FROM idempotency.claim_abandoned('aba own');
COMMIT;
BEGIN;
SELECT key, attempt FROM idempotency.claim_abandoned('aba own', '5 min');
SELECT count(*) FROM idempotency.claim_abandoned('aba own', '5 min');
SELECT idempotency.complete('abandoned', 'aba own', '1', 200, 'in the same transaction') > now() AS done;
ROLLBACK;
SELECT key, attempt FROM idempotency.claim_abandoned('aba own', '5 min');

-- A role that is bound sees its own scopes, however many others come first.
SET client_min_messages = warning;
DROP ROLE IF EXISTS regress_completer;
RESET client_min_messages;
CREATE ROLE regress_completer;
SELECT idempotency.grant_usage('regress_completer'), idempotency.bind_role('regress_completer', 'abandoned mine');
SELECT count((SELECT outcome FROM idempotency.claim('abandoned', 'aba bound', n::text, lease => '1 us'))) FROM generate_series(1, 40) AS n;
SELECT outcome FROM idempotency.claim('abandoned mine', 'aba bound', '1', lease => '1 us');
SET ROLE regress_completer;
SELECT scope, key FROM idempotency.claim_abandoned('aba bound', '5 min', max_rows => 1);
SELECT scope, key FROM idempotency.claim_abandoned('aba bound', '5 min', max_rows => 1);
RESET ROLE;
SELECT idempotency.unbind_role('regress_completer');
SELECT count(*) FROM idempotency.claim_abandoned('aba bound', '5 min');
DROP OWNED BY regress_completer;
DROP ROLE regress_completer;

-- Bad input.
SELECT * FROM idempotency.claim_abandoned('');
SELECT * FROM idempotency.claim_abandoned(max_rows => 0);
SELECT * FROM idempotency.claim_abandoned(lease => '-1 s');
BEGIN READ ONLY;
SELECT * FROM idempotency.claim_abandoned();
ROLLBACK;
BEGIN;
SET LOCAL idempotency.max_claims_per_transaction = 1;
SELECT (SELECT outcome FROM idempotency.claim('abandoned', 'aba limit', n::text, lease => '1 us')) FROM generate_series(1, 1) AS n;
COMMIT;
SELECT outcome FROM idempotency.claim('abandoned', 'aba limit', '2', lease => '1 us');
BEGIN;
SET LOCAL idempotency.max_claims_per_transaction = 1;
SELECT count(*) FROM idempotency.claim_abandoned('aba limit');
ROLLBACK;

SELECT idempotency.forget_scope('abandoned', true) > 50 AS forgotten, idempotency.forget_scope('abandoned mine', true);
