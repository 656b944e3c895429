-- import_completed(): keys of a home-grown table come over, once.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;

-- As a whole table, in one statement; the response is replayed as it was.
CREATE TEMP TABLE old_keys (account int, key text, code int, body text, created timestamptz, done timestamptz);
INSERT INTO old_keys SELECT n % 3, 'k' || n, 201, '{ "n":' || n || ' }', now() - interval '2 hours', now() - interval '1 hour' FROM generate_series(1, 9) AS n;
BEGIN;
SET LOCAL idempotency.max_claims_per_transaction = 1;
SELECT count(*) FILTER (WHERE idempotency.import_completed('import ' || account, 'POST /charges', key, code, body, '[["X", "1"]]', created_at => created, completed_at => done)) FROM old_keys;
COMMIT;
SELECT outcome, response_status, response_body, response_headers, c.created_at = o.created AS created, c.completed_at = o.done AS completed
FROM old_keys AS o, idempotency.claim('import 1', 'POST /charges', 'k1', lease => '1 min') AS c WHERE o.key = 'k1';
SELECT status, attempt, token, expires_at - created_at AS remembered, completed_at - created_at AS took FROM idempotency.lookup('import 1', 'POST /charges', 'k1');
-- Again, because new pods and old ones write at the same time: nothing changes.
SELECT count(*) FILTER (WHERE idempotency.import_completed('import ' || account, 'POST /charges', key, 500, 'other')) FROM old_keys;
SELECT response_status, response_body FROM idempotency.replay('import 1', 'POST /charges', 'k1');
-- What is known here stands, whatever it is.
SELECT token FROM idempotency.claim('import', 'op', 'open', lease => '1 min') \gset
SELECT idempotency.import_completed('import', 'op', 'open', 200);
SELECT idempotency.hold('import', 'op', 'open', token => :token) > 0 AS held;
SELECT idempotency.import_completed('import', 'op', 'open', 200);
SELECT status FROM idempotency.lookup('import', 'op', 'open');
-- Expired here is absent; its token is outdated.
SELECT token FROM idempotency.claim('import', 'op', 'expired', lease => '1 us', ttl => '1 us') \gset
SELECT idempotency.import_completed('import', 'op', 'expired', 200, 'imported');
SELECT response_body FROM idempotency.replay('import', 'op', 'expired');
SELECT idempotency.complete('import', 'op', 'expired', 200, 'late', token => :token);
-- Expired there is not worth it.
SELECT idempotency.import_completed('import', 'op', 'old', 200, created_at => now() - interval '2 days', completed_at => now() - interval '2 days');
SELECT idempotency.import_completed('import', 'op', 'old', 200, expires_at => now() - interval '1 s');
SELECT count(*) FROM idempotency.lookup('import', 'op', 'old');

-- Times: left out, one of them, all; by the policy of the operation.
SELECT idempotency.import_completed('import', 'op', 'now', 200, 'b');
SELECT created_at = completed_at AS at_once, now() - created_at < interval '1 min' AS now, expires_at - created_at AS remembered FROM idempotency.lookup('import', 'op', 'now');
SELECT idempotency.import_completed('import', 'op', 'created', 200, created_at => now() - interval '3 hours');
SELECT created_at = completed_at AS at_once, expires_at - created_at AS remembered FROM idempotency.lookup('import', 'op', 'created');
SELECT idempotency.import_completed('import', 'op', 'completed', 200, completed_at => now() - interval '3 hours');
SELECT created_at = completed_at AS at_once, expires_at - created_at AS remembered FROM idempotency.lookup('import', 'op', 'completed');
SELECT idempotency.import_completed('import', 'op', 'expires', 200, created_at => now() - interval '30 days', expires_at => '2000-01-01'::timestamptz + (now() + interval '1 day' - '2000-01-01'::timestamptz));
SELECT expires_at > now() AS live, created_at < now() - interval '29 days' AS old FROM idempotency.lookup('import', 'op', 'expires');
SELECT idempotency.set_policy('import policy', ttl => '3 days');
SELECT idempotency.import_completed('import', 'import policy', '1', 200, created_at => now() - interval '2 days');
SELECT expires_at - created_at AS remembered FROM idempotency.lookup('import', 'import policy', '1');
SELECT idempotency.drop_policy('import policy');
-- Bytes, and nothing at all.
SELECT idempotency.import_completed('import', 'op', 'bytes', response_bytes => '\x00ff'), idempotency.import_completed('import', 'op', 'nothing');
SELECT response_bytes FROM idempotency.replay('import', 'op', 'bytes');
SELECT outcome, response_status, response_body FROM idempotency.claim('import', 'op', 'nothing', lease => '1 min');
-- All or nothing with the transaction.
BEGIN;
SELECT idempotency.import_completed('import', 'op', 'undone', 200);
ROLLBACK;
SELECT count(*) FROM idempotency.lookup('import', 'op', 'undone');

-- Bad input.
SELECT idempotency.import_completed('import', 'op', 'bad', 200, 'a', response_bytes => 'b');
SELECT idempotency.import_completed('import', 'op', 'bad', 200, created_at => now() + interval '1 hour');
SELECT idempotency.import_completed('import', 'op', 'bad', 200, created_at => now(), completed_at => now() - interval '1 hour');
SELECT idempotency.import_completed('import', 'op', 'bad', 200, completed_at => now() + interval '1 hour');
SELECT idempotency.import_completed('import', 'op', 'bad', 200, expires_at => now() + interval '400 days');
SELECT idempotency.import_completed('import', 'op', 'bad', 200, expires_at => 'infinity');
SELECT idempotency.import_completed('import', 'op', 'bad', 200, created_at => '-infinity');
SELECT idempotency.import_completed('import', 'op', 'bad', 200, completed_at => '-infinity');
SELECT idempotency.import_completed('import', 'op', NULL, 200);
SET idempotency.max_response_size = '1kB';
SELECT idempotency.import_completed('import', 'op', 'bad', 200, repeat('x', 2000));
RESET idempotency.max_response_size;
BEGIN READ ONLY;
SELECT idempotency.import_completed('import', 'op', 'bad', 200);
ROLLBACK;
SELECT count(*) FROM idempotency.lookup('import', 'op', 'bad');

SELECT idempotency.forget_scope('import', true), (SELECT sum(idempotency.forget_scope('import ' || n)) FROM generate_series(0, 2) AS n);

-- a claim that so far is only in memory makes the key known
BEGIN;
SELECT outcome FROM idempotency.claim('import', 'op', 'claimed here');
SELECT idempotency.import_completed('import', 'op', 'claimed here', 200, 'from elsewhere');
SELECT idempotency.complete('import', 'op', 'claimed here', 200, 'ours') > now() AS completed;
COMMIT;
SELECT response_body FROM idempotency.replay('import', 'op', 'claimed here');
