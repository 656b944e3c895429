-- claim_id: a claim whose answer was lost on the wire is repeated, and only
-- who made it gets it again.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
\set mine '11111111-1111-4111-8111-111111111111'
\set other '22222222-2222-4222-8222-222222222222'

SELECT outcome, token, attempt FROM idempotency.claim('claim_id', 'op', '1', '{"a": 1}', lease => '5 min', claim_id => :'mine', note => 'trace 1') \gset
-- The very same again, as often as it takes.
SELECT outcome, token = :token AS same, attempt, taken_over, fingerprint_checked FROM idempotency.claim('claim_id', 'op', '1', '{"a": 1}', lease => '5 min', claim_id => :'mine');
SELECT outcome, token = :token AS same, attempt FROM idempotency.claim('claim_id', 'op', '1', lease => '5 min', claim_id => :'mine', note => 'another');
SELECT status, attempt, note, claim_id FROM idempotency.lookup('claim_id', 'op', '1');
-- Anybody else, and who has lost the uuid, too.
SELECT outcome, token FROM idempotency.claim('claim_id', 'op', '1', '{"a": 1}', lease => '5 min', claim_id => :'other');
SELECT outcome, token FROM idempotency.claim('claim_id', 'op', '1', '{"a": 1}', lease => '5 min');
SELECT outcome, token FROM idempotency.claim('claim_id', 'op', '1', '{"a": 2}', lease => '5 min', claim_id => :'mine');
-- Without a lease it is another kind of claim.
BEGIN;
SELECT outcome FROM idempotency.claim('claim_id', 'op', '1', claim_id => :'mine');
COMMIT;
-- A repeat renews the lease, but never shortens it.
SELECT locked_until FROM idempotency.lookup('claim_id', 'op', '1') \gset
SELECT outcome FROM idempotency.claim('claim_id', 'op', '1', lease => '1 us', claim_id => :'mine');
SELECT locked_until = :'locked_until' AS as_long FROM idempotency.lookup('claim_id', 'op', '1');
SELECT outcome FROM idempotency.claim('claim_id', 'op', '1', lease => '1 hour', claim_id => :'mine');
SELECT locked_until > :'locked_until' AS longer, token = :token AS same FROM idempotency.lookup('claim_id', 'op', '1');
-- The token completes; a repeat is then told the response, like everybody.
SELECT idempotency.complete('claim_id', 'op', '1', 201, 'done', token => :token) > now() AS done;
SELECT outcome, response_body FROM idempotency.claim('claim_id', 'op', '1', lease => '5 min', claim_id => :'mine');

-- After the lease has lapsed: still its own, as long as nobody has taken over.
SELECT token FROM idempotency.claim('claim_id', 'op', '2', lease => '1 us', claim_id => :'mine') \gset
SELECT outcome, token = :token AS same, attempt, taken_over FROM idempotency.claim('claim_id', 'op', '2', lease => '1 us', claim_id => :'mine');
SELECT outcome, token > :token AS larger, attempt, taken_over FROM idempotency.claim('claim_id', 'op', '2', lease => '5 min', claim_id => :'other');
SELECT outcome, token FROM idempotency.claim('claim_id', 'op', '2', lease => '5 min', claim_id => :'mine');
SELECT idempotency.complete('claim_id', 'op', '2', token => :token);
-- Taken over by somebody without a uuid: that does not make it the first one's.
SELECT token FROM idempotency.claim('claim_id', 'op', '3', lease => '1 us', claim_id => :'mine') \gset
SELECT outcome, token > :token AS larger FROM idempotency.claim('claim_id', 'op', '3', lease => '5 min');
SELECT outcome FROM idempotency.claim('claim_id', 'op', '3', lease => '5 min', claim_id => :'mine');
-- Failed and released: a new claim, with a new token.
SELECT token FROM idempotency.claim('claim_id', 'op', '4', lease => '5 min', claim_id => :'mine') \gset
SELECT idempotency.fail('claim_id', 'op', '4', 'no', token => :token);
SELECT outcome, token > :token AS larger, attempt FROM idempotency.claim('claim_id', 'op', '4', lease => '5 min', claim_id => :'mine');
SELECT token FROM idempotency.claim('claim_id', 'op', '5', lease => '5 min', claim_id => :'mine') \gset
SELECT idempotency.release('claim_id', 'op', '5', :token);
SELECT outcome, token > :token AS larger, attempt FROM idempotency.claim('claim_id', 'op', '5', lease => '5 min', claim_id => :'mine');
-- Held: also for who held it, by the word or by its absence.
SELECT token FROM idempotency.claim('claim_id', 'op', '6', lease => '5 min', claim_id => :'mine') \gset
SELECT idempotency.hold('claim_id', 'op', '6', token => :token) > 0 AS held;
SELECT outcome, token FROM idempotency.claim('claim_id', 'op', '6', lease => '5 min', claim_id => :'mine');
SELECT outcome FROM idempotency.claim('claim_id', 'op', '7', lease => '1 us', claim_id => :'mine', hold_if_abandoned => true);
SELECT outcome, token FROM idempotency.claim('claim_id', 'op', '7', lease => '5 min', claim_id => :'mine', hold_if_abandoned => true);
-- Expired: absent, so claimed afresh.
SELECT token FROM idempotency.claim('claim_id', 'op', '8', lease => '1 us', ttl => '1 us', claim_id => :'mine') \gset
SELECT outcome, token > :token AS larger, attempt, taken_over FROM idempotency.claim('claim_id', 'op', '8', lease => '5 min', claim_id => :'mine');
-- The checkpoints of the claim come along.
SELECT token FROM idempotency.claim('claim_id', 'op', '9', lease => '5 min', claim_id => :'mine') \gset
SELECT idempotency.checkpoint('claim_id', 'op', '9', 'charged', '{"a": 1}', token => :token) > now() AS renewed;
SELECT outcome, recovery_point, state, taken_over FROM idempotency.claim('claim_id', 'op', '9', lease => '5 min', claim_id => :'mine');
-- In one transaction, with and without a lease, and after a savepoint.
BEGIN;
SELECT token FROM idempotency.claim('claim_id', 'op', '10', lease => '5 min', claim_id => :'mine') \gset
SELECT outcome, token = :token AS same FROM idempotency.claim('claim_id', 'op', '10', lease => '5 min', claim_id => :'mine');
SELECT outcome FROM idempotency.claim('claim_id', 'op', '10', lease => '5 min', claim_id => :'other');
SELECT outcome FROM idempotency.claim('claim_id', 'op', '11', claim_id => :'mine');
SELECT outcome, token FROM idempotency.claim('claim_id', 'op', '11', claim_id => :'mine');
SELECT outcome FROM idempotency.claim('claim_id', 'op', '11');
SELECT idempotency.complete('claim_id', 'op', '11', 200) > now() AS done;
SAVEPOINT a;
SELECT token FROM idempotency.claim('claim_id', 'op', '12', lease => '5 min', claim_id => :'mine') \gset
ROLLBACK TO a;
SELECT outcome, token > :token AS larger FROM idempotency.claim('claim_id', 'op', '12', lease => '5 min', claim_id => :'mine');
COMMIT;
SELECT status, claim_id FROM idempotency.lookup('claim_id', 'op', '11');

SELECT idempotency.forget_scope('claim_id', true);
