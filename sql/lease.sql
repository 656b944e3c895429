-- Committed claims: the lease, who may take over, the token, the claim_id.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;

-- The claim commits on its own, the completion later.
SELECT outcome, attempt, token FROM idempotency.claim('lease', 'charge', '1', '{"a": 1}', lease => '5 min') \gset
\echo :outcome :attempt
SELECT status, token = :token AS token, abandoned, locked_until - created_at AS lease FROM idempotency.lookup('lease', 'charge', '1');
-- When to ask again is a hint, with a cap; locked_until is the truth.
SELECT outcome, token, retry_after_ms, rival, locked_until = created_at + interval '5 min' AS lease_end FROM idempotency.claim('lease', 'charge', '1', lease => '5 min');
SET idempotency.max_retry_after = '1h';
SELECT outcome, token, retry_after_ms BETWEEN 240000 AND 300000 AS what_is_left FROM idempotency.claim('lease', 'charge', '1', lease => '5 min');
RESET idempotency.max_retry_after;
-- It is a hint to whoever asks again. Who waits goes by the lease, and looks now and then.
BEGIN;
SET LOCAL idempotency.max_retry_after = '1ms';
SELECT idx_scan AS before FROM pg_stat_xact_user_tables WHERE relid = 'idempotency.idempotency_keys'::regclass \gset
SELECT outcome, retry_after_ms FROM idempotency.claim('lease', 'charge', '1', wait => '1 s');
SELECT idx_scan - :before < 50 AS sleeps FROM pg_stat_xact_user_tables WHERE relid = 'idempotency.idempotency_keys'::regclass;
COMMIT;
SELECT idempotency.complete('lease', 'charge', '1', 201, token => :token) > now() AS done;
SELECT outcome, token FROM idempotency.claim('lease', 'charge', '1', lease => '5 min');
SELECT status, token = :token AS token, locked_until FROM idempotency.lookup('lease', 'charge', '1');

-- extend(): the new end counts from now; it may be earlier, too.
SELECT token FROM idempotency.claim('lease', 'extend', '1', lease => '5 min') \gset
BEGIN;
SELECT idempotency.extend('lease', 'extend', '1', '20 min', :token) AS until \gset
SELECT :'until' BETWEEN now() + interval '20 min' AND clock_timestamp() + interval '20 min' AS as_said;
COMMIT;
SELECT locked_until = :'until' AS as_said FROM idempotency.lookup('lease', 'extend', '1');
BEGIN;
SELECT idempotency.extend('lease', 'extend', '1', '1 min', :token) BETWEEN now() + interval '1 min' AND clock_timestamp() + interval '1 min' AS as_said;
COMMIT;
BEGIN;
-- Without a length: as long as it was claimed for, whatever the setting says.
SET LOCAL idempotency.default_lease = '90s';
SELECT idempotency.extend('lease', 'extend', '1', token => :token) BETWEEN now() + interval '5 min' AND clock_timestamp() + interval '5 min' AS by_default;
COMMIT;
-- That never shortens it.
SELECT idempotency.extend('lease', 'extend', '1', '20 min', :token) AS until \gset
SELECT idempotency.extend('lease', 'extend', '1', token => :token) = :'until' AS not_shorter;
SELECT idempotency.checkpoint('lease', 'extend', '1', 'half', token => :token) = :'until' AS not_shorter;
SELECT idempotency.checkpoint('lease', 'extend', '1', 'half', lease => '30 s', token => :token) < :'until' AS shorter_if_asked_for;
-- Nothing else about the key changes.
SELECT status, attempt, token = :token AS token, expires_at = created_at + interval '24 hours' AS expires FROM idempotency.lookup('lease', 'extend', '1');
-- A lapsed one is alive again as long as nobody has taken over ...
SELECT token FROM idempotency.claim('lease', 'extend', '2', lease => '1 us') \gset
SELECT status, abandoned FROM idempotency.lookup('lease', 'extend', '2');
SELECT idempotency.extend('lease', 'extend', '2', '5 min', :token) > now() AS done;
SELECT status, abandoned FROM idempotency.lookup('lease', 'extend', '2');
SELECT outcome FROM idempotency.claim('lease', 'extend', '2', lease => '5 min');
-- ... and lost for good once somebody has, whatever became of it.
SELECT idempotency.extend('lease', 'extend', '2', '1 us', :token) > now() AS later;
SELECT outcome, token AS next FROM idempotency.claim('lease', 'extend', '2', lease => '5 min') \gset
SELECT idempotency.extend('lease', 'extend', '2', '5 min', :token);
\echo :SQLSTATE
SELECT idempotency.fail('lease', 'extend', '2', token => :next);
SELECT idempotency.extend('lease', 'extend', '2', '5 min', :token);
\echo :SQLSTATE
-- A claim without a lease has none to extend.
BEGIN;
SELECT outcome FROM idempotency.claim('lease', 'extend', '3');
SELECT idempotency.extend('lease', 'extend', '3', '5 min');
\echo :SQLSTATE
ROLLBACK;

-- Taken over: a larger token, the next attempt, what the first one left.
SELECT token AS first FROM idempotency.claim('lease', 'takeover', '1', '{"a": 1}', lease => '1 us', note => 'trace 1') \gset
SELECT outcome, taken_over, attempt, token > :first AS larger, token AS second, fingerprint_checked FROM idempotency.claim('lease', 'takeover', '1', '{"a": 1}', lease => '1 us') \gset
\echo :outcome :taken_over :attempt :larger :fingerprint_checked
SELECT outcome, taken_over, attempt, token > :second AS larger, token AS third FROM idempotency.claim('lease', 'takeover', '1', lease => '5 min', note => 'trace 3') \gset
\echo :outcome :taken_over :attempt :larger
SELECT status, attempt, note, fingerprint = idempotency.fingerprint('{"a": 1}') AS fingerprint, claimed_at > created_at AS claimed_later FROM idempotency.lookup('lease', 'takeover', '1');
-- Not for another request, though its owner is gone.
SELECT token AS other FROM idempotency.claim('lease', 'takeover', '2', '{"a": 1}', lease => '1 us') \gset
SELECT outcome, taken_over, token FROM idempotency.claim('lease', 'takeover', '2', '{"a": 2}', lease => '5 min');
SELECT token = :other AS untouched, attempt FROM idempotency.lookup('lease', 'takeover', '2');
-- A policy or setting never makes a lease: only the argument does.
SET idempotency.default_lease = '1h';
BEGIN;
SELECT outcome, token FROM idempotency.claim('lease', 'takeover', '3');
ROLLBACK;
RESET idempotency.default_lease;

-- What the late owner's calls get, and that a transaction which made one
-- of them cannot commit.
CREATE TEMP TABLE ledger (what text);
CREATE FUNCTION pg_temp.late(call text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	hint text;
	word text;
BEGIN
	EXECUTE 'SELECT ' || call;
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS word = CONSTRAINT_NAME, hint = PG_EXCEPTION_HINT;
	RETURN SQLSTATE || ' ' || SQLERRM || ' (' || word || ') ' || hint;
END $$;
SELECT verb, pg_temp.late(format('idempotency.%s(''lease'', ''takeover'', ''1'', token => %s)', verb, :first)) FROM unnest(ARRAY['complete', 'fail', 'release', 'extend']) verb;
SELECT verb, pg_temp.late(format('idempotency.%s(''lease'', ''takeover'', ''1'', token => %s)', verb, :second)) FROM unnest(ARRAY['complete', 'fail', 'release', 'extend']) verb;
BEGIN;
INSERT INTO ledger VALUES ('late');
SELECT idempotency.fail('lease', 'takeover', '1', token => :second);
COMMIT;
SELECT * FROM ledger;
SELECT idempotency.complete('lease', 'takeover', '1', token => :third) > now() AS done;
SELECT pg_temp.late(format('idempotency.complete(''lease'', ''takeover'', ''1'', token => %s)', :second));
SELECT idempotency.forget('lease', 'takeover', '1');
SELECT pg_temp.late(format('idempotency.complete(''lease'', ''takeover'', ''1'', token => %s)', :third));

-- The token may be left out in the transaction of the claim, not in another.
BEGIN;
SELECT outcome FROM idempotency.claim('lease', 'token', '1', lease => '5 min');
SELECT idempotency.extend('lease', 'token', '1', '6 min') > now() AS done;
SELECT idempotency.complete('lease', 'token', '1', 200) > now() AS done;
COMMIT;
SELECT token FROM idempotency.claim('lease', 'token', '2', lease => '5 min') \gset
SELECT verb, pg_temp.late(format('idempotency.%s(''lease'', ''token'', ''2'')', verb)) FROM unnest(ARRAY['complete', 'fail', 'release', 'extend']) verb;
-- A call that took the token makes the claim known to its transaction.
BEGIN;
SELECT idempotency.extend('lease', 'token', '2', '5 min', :token) > now() AS done;
SELECT idempotency.complete('lease', 'token', '2', 200) > now() AS done;
COMMIT;
-- A wrong one is not ignored because the claim is the transaction's own.
BEGIN;
SELECT outcome, token FROM idempotency.claim('lease', 'token', '3', lease => '5 min') \gset
SELECT left(pg_temp.late(format('idempotency.complete(''lease'', ''token'', ''3'', token => %s)', :token + 1)), 5);
SELECT left(pg_temp.late(format('idempotency.complete(''lease'', ''token'', ''3'', token => %s)', :token - 1)), 5);
SELECT outcome FROM idempotency.claim('lease', 'token', '4');
SELECT left(pg_temp.late(format('idempotency.complete(''lease'', ''token'', ''4'', token => %s)', :token)), 5);
SELECT idempotency.complete('lease', 'token', '3', 200, token => :token) > now() AS done;
SELECT idempotency.complete('lease', 'token', '4', 200) > now() AS done;
COMMIT;
-- A claim with a lease needs no end in its transaction, but its rollback is one.
BEGIN;
SELECT outcome FROM idempotency.claim('lease', 'token', '5', lease => '5 min');
ROLLBACK;
SELECT count(*) FROM idempotency.lookup('lease', 'token', '5');

-- Tokens only go up, over all keys and whatever became of the claims.
CREATE TEMP TABLE tokens (no serial, token bigint);
INSERT INTO tokens (token) SELECT token FROM generate_series(1, 20) i, LATERAL idempotency.claim('lease', 'tokens', 'k' || i % 4, lease => '1 us');
INSERT INTO tokens (token) SELECT token FROM generate_series(1, 20) i, LATERAL idempotency.claim('lease', 'tokens', 'k' || i % 4, lease => '5 min') WHERE outcome = 'claimed';
SELECT idempotency.forget_scope('lease', true) > 0 AS forgotten;
INSERT INTO tokens (token) SELECT token FROM generate_series(1, 4) i, LATERAL idempotency.claim('lease', 'tokens', 'k' || i % 4, lease => '5 min');
SELECT count(*), count(*) FILTER (WHERE token <= before) AS not_larger FROM (SELECT token, lag(token) OVER (ORDER BY no) AS before FROM tokens) t;
-- Also where the sequence was set back, as a restore does.
SELECT token FROM idempotency.claim('lease', 'tokens', 'restored', lease => '1 us') \gset
SELECT last_value AS highest FROM idempotency.token_seq \gset
SELECT setval('idempotency.token_seq', 1) AS back;
SELECT outcome, token > :token AS larger, token AS next FROM idempotency.claim('lease', 'tokens', 'restored', lease => '5 min') \gset
\echo :outcome :larger
SELECT left(pg_temp.late(format('idempotency.complete(''lease'', ''tokens'', ''restored'', token => %s)', :token)), 5);
SELECT setval('idempotency.token_seq', greatest(:highest, last_value)) > 0 AS forward FROM idempotency.token_seq;

-- claim_id: a claim whose answer was lost is repeated, and gets the same token.
\set a '11111111-1111-1111-1111-111111111111'
\set b '22222222-2222-2222-2222-222222222222'
SELECT outcome, attempt, token FROM idempotency.claim('lease', 'claim_id', '1', '{"a": 1}', lease => '5 min', claim_id => :'a') \gset
SELECT outcome, attempt, token = :token AS same, taken_over FROM idempotency.claim('lease', 'claim_id', '1', '{"a": 1}', lease => '5 min', claim_id => :'a');
-- Anybody else waits, also with an id of their own or none, and on this connection.
SELECT outcome, token FROM idempotency.claim('lease', 'claim_id', '1', '{"a": 1}', lease => '5 min', claim_id => :'b');
SELECT outcome, token FROM idempotency.claim('lease', 'claim_id', '1', '{"a": 1}', lease => '5 min');
SELECT outcome, token FROM idempotency.claim('lease', 'claim_id', '1', '{"a": 2}', lease => '5 min', claim_id => :'a');
-- The repeat renews the lease and never shortens it.
SELECT outcome, token = :token AS same FROM idempotency.claim('lease', 'claim_id', '1', lease => '1 min', claim_id => :'a');
SELECT locked_until - created_at > interval '4 min' AS kept, claim_id FROM idempotency.lookup('lease', 'claim_id', '1');
SELECT outcome, token = :token AS same FROM idempotency.claim('lease', 'claim_id', '1', lease => '10 min', claim_id => :'a');
SELECT locked_until - created_at > interval '9 min' AS renewed FROM idempotency.lookup('lease', 'claim_id', '1');
-- Over once the claim is.
SELECT idempotency.complete('lease', 'claim_id', '1', 200, 'done', token => :token) > now() AS done;
SELECT outcome, token, response_body FROM idempotency.claim('lease', 'claim_id', '1', '{"a": 1}', lease => '5 min', claim_id => :'a');
SELECT outcome, token FROM idempotency.claim('lease', 'claim_id', '2', lease => '5 min', claim_id => :'a') \gset
SELECT idempotency.fail('lease', 'claim_id', '2', token => :token);
SELECT outcome, attempt, token > :token AS larger FROM idempotency.claim('lease', 'claim_id', '2', lease => '5 min', claim_id => :'a');
-- Lapsed but not taken over, it is still this caller's; taken over, it is not.
SELECT token FROM idempotency.claim('lease', 'claim_id', '3', lease => '1 us', claim_id => :'a') \gset
SELECT outcome, attempt, token = :token AS same, taken_over FROM idempotency.claim('lease', 'claim_id', '3', lease => '1 us', claim_id => :'a');
SELECT outcome, attempt, token > :token AS larger, taken_over FROM idempotency.claim('lease', 'claim_id', '3', lease => '5 min', claim_id => :'b');
SELECT outcome, token FROM idempotency.claim('lease', 'claim_id', '3', lease => '5 min', claim_id => :'a');
-- Within one transaction, too.
BEGIN;
SELECT outcome, token FROM idempotency.claim('lease', 'claim_id', '4', lease => '5 min', claim_id => :'a') \gset
SELECT outcome, token = :token AS same FROM idempotency.claim('lease', 'claim_id', '4', lease => '5 min', claim_id => :'a');
SELECT outcome FROM idempotency.claim('lease', 'claim_id', '4', lease => '5 min', claim_id => :'b');
COMMIT;
SELECT outcome, attempt, token = :token AS same FROM idempotency.claim('lease', 'claim_id', '4', lease => '5 min', claim_id => :'a');
BEGIN;
SELECT outcome, token FROM idempotency.claim('lease', 'claim_id', '5', claim_id => :'a');
SELECT outcome, token, attempt FROM idempotency.claim('lease', 'claim_id', '5', claim_id => :'a');
SELECT idempotency.complete('lease', 'claim_id', '5', 200) > now() AS done;
COMMIT;

-- hold_if_abandoned: from the end of the lease on, a person decides.
SELECT token, outcome FROM idempotency.claim('lease', 'hold', '1', lease => '5 min', hold_if_abandoned => true) \gset
SELECT status, abandoned, hold_if_abandoned FROM idempotency.lookup('lease', 'hold', '1');
SELECT outcome, retry_after_ms > 0 AS retry FROM idempotency.claim('lease', 'hold', '1', lease => '5 min');
SELECT idempotency.extend('lease', 'hold', '1', '1 us', :token) > now() AS later;
SELECT status, abandoned, hold_if_abandoned FROM idempotency.lookup('lease', 'hold', '1');
SELECT outcome, token, retry_after_ms FROM idempotency.claim('lease', 'hold', '1', lease => '5 min');
SELECT verb, pg_temp.late(format('idempotency.%s(''lease'', ''hold'', ''1'', token => %s)', verb, :token)) FROM unnest(ARRAY['fail', 'release', 'extend']) verb;
SELECT idempotency.complete('lease', 'hold', '1', 200, token => :token) > now() AS done;
SELECT outcome FROM idempotency.claim('lease', 'hold', '1', lease => '5 min');
