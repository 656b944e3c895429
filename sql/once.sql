-- once(): true the first time, false ever after, all or nothing with the
-- effects of the transaction that asks.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
CREATE TEMP TABLE effects (event text);

-- The consumer's transaction: event and effect together.
BEGIN;
SELECT idempotency.once('once', 'booked', 'evt 1');
INSERT INTO effects VALUES ('evt 1');
COMMIT;
SELECT idempotency.once('once', 'booked', 'evt 1');
SELECT idempotency.once('once', 'booked', 'evt 1') AS again, idempotency.once('once', 'booked', 'evt 2') AS another;
SELECT idempotency.once('once', 'shipped', 'evt 1') AS another_operation, idempotency.once('once again', 'booked', 'evt 1') AS another_scope;
SELECT idempotency.forget_scope('once again');

-- Rolled back with the effect, and first again.
BEGIN;
SELECT idempotency.once('once', 'booked', 'evt 3');
INSERT INTO effects VALUES ('evt 3');
ROLLBACK;
SELECT status FROM idempotency.lookup('once', 'booked', 'evt 3');
BEGIN;
SELECT idempotency.once('once', 'booked', 'evt 3');
SAVEPOINT a;
SELECT idempotency.once('once', 'booked', 'evt 3') AS twice_in_one_transaction, idempotency.once('once', 'booked', 'evt 4');
ROLLBACK TO a;
SELECT idempotency.once('once', 'booked', 'evt 3') AS kept, idempotency.once('once', 'booked', 'evt 4') AS undone;
INSERT INTO effects VALUES ('evt 3'), ('evt 4');
COMMIT;
SELECT event, count(*) FROM effects GROUP BY event ORDER BY event;

-- One write, completed, no token, and remembered for once_ttl: 30 days.
SELECT status, attempt, token, completed_at = created_at AS at_once, expires_at - created_at AS remembered
FROM idempotency.lookup('once', 'booked', 'evt 1');
SELECT idempotency.once('once', 'ttl', '1', ttl => '2 days');
SELECT expires_at - created_at AS remembered FROM idempotency.lookup('once', 'ttl', '1');
SET idempotency.once_ttl = '7d';
SELECT idempotency.once('once', 'ttl', '2');
SELECT expires_at - created_at AS remembered FROM idempotency.lookup('once', 'ttl', '2');
SELECT idempotency.set_policy('once policy', ttl => '3 days');
SELECT idempotency.once('once', 'once policy', '1');
SELECT expires_at - created_at AS remembered FROM idempotency.lookup('once', 'once policy', '1');
SELECT idempotency.drop_policy('once policy');
RESET idempotency.once_ttl;

-- No response was recorded, and it is replayed as such: done, with no body.
SELECT response_status, response_body IS NULL AS no_body FROM idempotency.replay('once', 'booked', 'evt 1');
SELECT outcome, response_body FROM idempotency.claim('once', 'booked', 'evt 1', lease => '1 min');

-- Expired: the first time again.
SELECT idempotency.once('once', 'expired', '1', ttl => '1 us');
SELECT idempotency.once('once', 'expired', '1');
SELECT idempotency.once('once', 'expired', '1');

-- Failed: again. In retry_in it is undecided, like any claim under way.
SELECT token FROM idempotency.claim('once', 'failed', '1', lease => '1 min') \gset
SELECT idempotency.once('once', 'failed', '1', wait => '0');
SELECT idempotency.fail('once', 'failed', '1', 'no connection', retry_in => '1 hour', token => :token);
SELECT idempotency.once('once', 'failed', '1', wait => '1 ms');
SELECT token FROM idempotency.claim('once', 'failed', '2', lease => '1 min') \gset
SELECT idempotency.fail('once', 'failed', '2', 'no connection', token => :token);
SELECT idempotency.once('once', 'failed', '2') AS again, idempotency.once('once', 'failed', '2') AS then;
-- The token of the failed claim is outdated.
SELECT idempotency.complete('once', 'failed', '2', 200, token => :token);

-- Abandoned: whoever asks gets it. Its late owner is told so.
SELECT token FROM idempotency.claim('once', 'abandoned', '1', lease => '1 us') \gset
SELECT idempotency.once('once', 'abandoned', '1') AS again, idempotency.once('once', 'abandoned', '1') AS then;
SELECT idempotency.complete('once', 'abandoned', '1', token => :token);

-- Held: neither yes nor no.
SELECT token FROM idempotency.claim('once', 'held', '1', lease => '1 min') \gset
SELECT idempotency.hold('once', 'held', '1', 'no answer', :token) > 0 AS held;
SELECT idempotency.once('once', 'held', '1');
SELECT outcome FROM idempotency.claim('once', 'held', '2', lease => '1 us', hold_if_abandoned => true);
SELECT idempotency.once('once', 'held', '2');

-- A claim of this very transaction is undecided, and not waited for.
BEGIN;
SELECT outcome FROM idempotency.claim('once', 'own', '1');
SELECT idempotency.once('once', 'own', '1');
ROLLBACK;

-- At every isolation level; no key lock is left by "false".
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT idempotency.once('once', 'level', '1') AS first, idempotency.once('once', 'level', '1') AS then;
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT idempotency.once('once', 'level', '1');
SELECT count(*) AS locks FROM pg_locks WHERE objsubid = 18756 AND pid = pg_backend_pid();
COMMIT;
BEGIN READ ONLY;
SELECT idempotency.once('once', 'level', '1');
ROLLBACK;

-- Bad input.
SELECT idempotency.once(NULL, 'op', 'k');
SELECT idempotency.once('once', '', 'k');
SELECT idempotency.once('once', 'op', repeat('k', 256));
SELECT idempotency.once('once', 'op', 'k', ttl => '0');
SELECT idempotency.once('once', 'op', 'k', wait => '-1 s');
SELECT status FROM idempotency.lookup('once', 'op', 'k');

SELECT idempotency.forget_scope('once', true);
