-- checkpoint(): how far the work got, for whoever goes on with it.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;

-- The owner records where it is; the next one is told.
SELECT token AS first FROM idempotency.claim('checkpoint', 'pay', '1', lease => '5 min') \gset
SELECT idempotency.checkpoint('checkpoint', 'pay', '1', 'reserved', '{"seat": 12}', token => :first) > now() AS renewed;
SELECT status, recovery_point, state, checkpointed_at >= created_at AS noted, attempt FROM idempotency.lookup('checkpoint', 'pay', '1');
-- State that is not given stays; the point is replaced.
SELECT idempotency.checkpoint('checkpoint', 'pay', '1', 'charged', token => :first) > now() AS renewed;
SELECT recovery_point, state FROM idempotency.lookup('checkpoint', 'pay', '1');
SELECT idempotency.checkpoint('checkpoint', 'pay', '1', 'charged', '{"charge": "ch_1", "amount": 1.10}', token => :first) > now() AS renewed;
-- The lease is renewed: by its own length or one that is given, and never shortened unasked.
BEGIN;
SELECT idempotency.set_policy('pay', lease => '7 min');
SELECT idempotency.checkpoint('checkpoint', 'pay', '1', 'charged', token => :first) BETWEEN now() + interval '5 min' AND clock_timestamp() + interval '5 min' AS its_own;
SELECT idempotency.checkpoint('checkpoint', 'pay', '1', 'charged', token => :first, lease => '20 min') BETWEEN now() + interval '20 min' AND clock_timestamp() + interval '20 min' AS given;
SELECT idempotency.checkpoint('checkpoint', 'pay', '1', 'charged', token => :first) BETWEEN now() + interval '20 min' AND clock_timestamp() + interval '20 min' AS not_shorter;
SELECT idempotency.checkpoint('checkpoint', 'pay', '1', 'charged', token => :first, lease => '2 min') BETWEEN now() + interval '2 min' AND clock_timestamp() + interval '2 min' AS given;
ROLLBACK;
-- Somebody else sees none of it while the claim is open.
SELECT outcome, recovery_point, state FROM idempotency.claim('checkpoint', 'pay', '1', lease => '5 min');
-- Takeover: point and state, and that the owner vanished.
SELECT idempotency.checkpoint('checkpoint', 'pay', '1', 'charged', token => :first, lease => '1 us') IS NOT NULL AS let_go;
SELECT outcome, taken_over, attempt, recovery_point, state, last_error, token AS second FROM idempotency.claim('checkpoint', 'pay', '1', lease => '5 min') \gset
\echo :outcome :taken_over :attempt :recovery_point :state
-- The late owner cannot record anything any more.
SELECT idempotency.checkpoint('checkpoint', 'pay', '1', 'mailed', token => :first);
\echo :SQLSTATE
-- A failure keeps them, and the next attempt also learns why it failed.
SELECT idempotency.fail('checkpoint', 'pay', '1', 'mail server is down', token => :second);
SELECT outcome, taken_over, attempt, recovery_point, state, last_error, token AS third FROM idempotency.claim('checkpoint', 'pay', '1', lease => '5 min') \gset
\echo :outcome :taken_over :attempt :recovery_point :state :last_error
-- Completed: they stay for the person who reads the table, the claim is over.
SELECT idempotency.complete('checkpoint', 'pay', '1', 201, token => :third) > now() AS done;
SELECT status, recovery_point, last_error FROM idempotency.lookup('checkpoint', 'pay', '1');
SELECT outcome, recovery_point, state FROM idempotency.claim('checkpoint', 'pay', '1', lease => '5 min');
SELECT idempotency.checkpoint('checkpoint', 'pay', '1', 'mailed', token => :third);
\echo :SQLSTATE

-- No release after a checkpoint: "finally { release }" must not undo a charge.
SELECT token FROM idempotency.claim('checkpoint', 'release', '1', lease => '5 min') \gset
SELECT idempotency.checkpoint('checkpoint', 'release', '1', 'charged', token => :token) > now() AS renewed;
SELECT idempotency.release('checkpoint', 'release', '1', :token);
\echo :SQLSTATE
SELECT status, recovery_point FROM idempotency.lookup('checkpoint', 'release', '1');
-- One of an earlier attempt does not count: this attempt has got nowhere.
SELECT idempotency.fail('checkpoint', 'release', '1', 'first error', token => :token);
SELECT token FROM idempotency.claim('checkpoint', 'release', '1', lease => '5 min') \gset
SELECT idempotency.release('checkpoint', 'release', '1', :token);
SELECT status, attempt, recovery_point, last_error FROM idempotency.lookup('checkpoint', 'release', '1');
-- A checkpoint that was rolled back was none.
SELECT token FROM idempotency.claim('checkpoint', 'release', '2', lease => '5 min') \gset
BEGIN;
SELECT idempotency.checkpoint('checkpoint', 'release', '2', 'charged', token => :token) > now() AS renewed;
ROLLBACK;
SELECT idempotency.release('checkpoint', 'release', '2', :token);
SELECT count(*) AS rows FROM idempotency.lookup('checkpoint', 'release', '2');

-- With the business rows, in one transaction, by the claim itself.
BEGIN;
SELECT token FROM idempotency.claim('checkpoint', 'claim', '1', lease => '5 min') \gset
SELECT idempotency.checkpoint('checkpoint', 'claim', '1', 'begun', '[1]') > now() AS renewed;
COMMIT;
SELECT recovery_point, state, token = :token AS same FROM idempotency.lookup('checkpoint', 'claim', '1');

-- Without a lease there is none to renew; it is recorded if the work fails.
BEGIN;
SELECT outcome FROM idempotency.claim('checkpoint', 'no lease', '1');
SELECT idempotency.checkpoint('checkpoint', 'no lease', '1', 'half', '{"a": 1}') IS NULL AS no_lease;
SAVEPOINT a;
SELECT idempotency.checkpoint('checkpoint', 'no lease', '1', 'three quarters', '{"a": 2}') IS NULL AS no_lease;
ROLLBACK TO a;
SELECT idempotency.fail('checkpoint', 'no lease', '1', 'oh');
COMMIT;
SELECT outcome, attempt, recovery_point, state, last_error FROM idempotency.claim('checkpoint', 'no lease', '1', lease => '1 min');
BEGIN;
SELECT outcome FROM idempotency.claim('checkpoint', 'no lease', '2');
SELECT idempotency.checkpoint('checkpoint', 'no lease', '2', 'half') IS NULL AS no_lease;
SELECT idempotency.release('checkpoint', 'no lease', '2');
ROLLBACK;

-- An expired key's recovery point is not the next life's.
SELECT token FROM idempotency.claim('checkpoint', 'expired', '1', lease => '1 min', ttl => '1 us') \gset
SELECT idempotency.checkpoint('checkpoint', 'expired', '1', 'old', '{}', '1 us', :token) IS NOT NULL AS let_go;
SELECT outcome, attempt, taken_over, recovery_point, state FROM idempotency.claim('checkpoint', 'expired', '1', lease => '1 min');

-- Bad input.
SELECT token FROM idempotency.claim('checkpoint', 'bad', '1', lease => '1 min') \gset
SELECT idempotency.checkpoint('checkpoint', 'bad', '1', NULL, token => :token);
SELECT idempotency.checkpoint('checkpoint', 'bad', '1', 'p', token => :token, lease => '0');
SELECT idempotency.checkpoint('checkpoint', 'bad', '1', 'p');
SELECT idempotency.checkpoint('checkpoint', 'bad', '1', 'p', token => :token + 1);
SET idempotency.max_response_size = '1kB';
SELECT idempotency.checkpoint('checkpoint', 'bad', '1', 'p', to_jsonb(repeat('x', 2000)), token => :token);
SELECT idempotency.checkpoint('checkpoint', 'bad', '1', repeat('x', 2000), token => :token);
RESET idempotency.max_response_size;
SELECT status, recovery_point FROM idempotency.lookup('checkpoint', 'bad', '1');

SELECT idempotency.forget_scope('checkpoint', true);
