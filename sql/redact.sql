-- redact(): what a key remembers goes, that it was done stays.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;

SELECT token FROM idempotency.claim('redact', 'op', '1', '{"card": 4242}', lease => '5 min', note => 'trace 7') \gset
SELECT idempotency.checkpoint('redact', 'op', '1', 'charged', '{"card": 4242}', token => :token) > now() AS renewed;
SELECT idempotency.complete('redact', 'op', '1', 201, 'card 4242', '{"Set-Cookie": "4242"}', token => :token) > now() AS done;
SELECT idempotency.redact('redact', 'op', '1');
-- Nothing of it is left; identity, status and lifetime are.
SELECT status, response_status, response_body, response_bytes, response_headers, state, last_error, recovery_point, redacted_at IS NOT NULL AS redacted, expires_at - created_at AS remembered
FROM idempotency.idempotency_keys WHERE scope = 'redact' AND key = '1';
SELECT status, redacted_at IS NOT NULL AS redacted, state FROM idempotency.lookup('redact', 'op', '1');
-- A repeat is recognised, and neither answered nor executed.
SELECT outcome FROM idempotency.claim('redact', 'op', '1', lease => '5 min');
SELECT outcome FROM idempotency.claim('redact', 'op', '1');
SELECT * FROM idempotency.replay('redact', 'op', '1');
SELECT outcome FROM idempotency.claim('redact', 'op', '1', '{"card": 1}', lease => '5 min');
SELECT idempotency.once('redact', 'op', '1');
SELECT * FROM idempotency.once_batch('redact', 'op', ARRAY['1']);
-- A completion again cannot be compared any more.
SELECT idempotency.complete('redact', 'op', '1', 201, 'card 4242', '{"Set-Cookie": "4242"}', token => :token);
\echo :SQLSTATE
-- Twice is the same; what is not there or has expired is not redacted.
SELECT idempotency.redact('redact', 'op', '1') AS again, idempotency.redact('redact', 'op', 'none') AS none;
SELECT idempotency.once('redact', 'op', 'expired', ttl => '1 us');
SELECT idempotency.redact('redact', 'op', 'expired') AS expired;
-- A claim of a transaction that is rolled back brings nothing back.
BEGIN;
SELECT idempotency.redact('redact', 'op', '1');
ROLLBACK;
SELECT outcome FROM idempotency.claim('redact', 'op', '1', lease => '5 min');

-- Bytes.
SELECT token FROM idempotency.claim('redact', 'op', '2', lease => '5 min') \gset
SELECT idempotency.complete('redact', 'op', '2', 200, response_bytes => '\x00ff', token => :token) > now() AS done;
BEGIN;
SELECT idempotency.redact('redact', 'op', '2');
ROLLBACK;
SELECT response_bytes FROM idempotency.replay('redact', 'op', '2');
SELECT idempotency.redact('redact', 'op', '2');
SELECT response_bytes FROM idempotency.replay('redact', 'op', '2');

-- A failed key: error and state go, and the next attempt begins; its response
-- is handed out as ever.
SELECT token FROM idempotency.claim('redact', 'op', '3', lease => '5 min') \gset
SELECT idempotency.checkpoint('redact', 'op', '3', 'charged', '{"card": 4242}', token => :token) > now() AS renewed;
SELECT idempotency.fail('redact', 'op', '3', 'card 4242 was refused', token => :token);
SELECT idempotency.redact('redact', 'op', '3');
SELECT status, state, last_error, recovery_point FROM idempotency.lookup('redact', 'op', '3');
SELECT outcome, attempt, state, last_error, recovery_point, token FROM idempotency.claim('redact', 'op', '3', lease => '5 min') \gset
\echo :outcome :attempt :state :last_error :recovery_point
SELECT idempotency.complete('redact', 'op', '3', 201, 'new', token => :token) > now() AS done;
SELECT outcome, response_body FROM idempotency.claim('redact', 'op', '3', lease => '5 min');
SELECT redacted_at FROM idempotency.lookup('redact', 'op', '3');
-- An expired one is absent: claimed afresh, and replayed.
SELECT token FROM idempotency.claim('redact', 'op', '4', lease => '5 min') \gset
SELECT idempotency.complete('redact', 'op', '4', 201, 'old', token => :token) > now() AS done;
SELECT idempotency.redact('redact', 'op', '4');
UPDATE idempotency.idempotency_keys SET expires_at = now() WHERE scope = 'redact' AND operation = 'op' AND key = '4';
SELECT token, outcome FROM idempotency.claim('redact', 'op', '4', lease => '5 min') \gset
\echo :outcome
SELECT idempotency.complete('redact', 'op', '4', 201, 'new', token => :token) > now() AS done;
SELECT response_body FROM idempotency.replay('redact', 'op', '4');
-- The work still needs them: not while it is in progress or held.
SELECT token FROM idempotency.claim('redact', 'op', '5', lease => '5 min') \gset
SELECT idempotency.redact('redact', 'op', '5');
SELECT idempotency.hold('redact', 'op', '5', token => :token) > 0 AS held;
SELECT idempotency.redact('redact', 'op', '5');

-- A whole scope: finished keys, each once; no other scope.
SELECT idempotency.once('redact scope', 'op', '1'), idempotency.once('redact scope', 'op 2', '1'), idempotency.once('redact scopes', 'op', '1');
SELECT token FROM idempotency.claim('redact scope', 'op', 'failed', lease => '5 min') \gset
SELECT idempotency.fail('redact scope', 'op', 'failed', 'card 4242', token => :token);
SELECT token FROM idempotency.claim('redact scope', 'op', 'held', lease => '5 min') \gset
SELECT idempotency.hold('redact scope', 'op', 'held', 'card 4242', token => :token) > 0 AS held;
SELECT outcome FROM idempotency.claim('redact scope', 'op', 'open', lease => '5 min');
SELECT idempotency.redact_scope('redact scope');
SELECT operation, key, status, last_error, redacted_at IS NOT NULL AS redacted FROM idempotency.idempotency_keys WHERE scope LIKE 'redact scope%' ORDER BY scope, operation, key;
SELECT idempotency.redact_scope('redact scope') AS again, idempotency.redact_scope('redact none') AS none;
SELECT outcome FROM idempotency.claim('redact scope', 'op', '1', lease => '5 min');
SELECT outcome, last_error FROM idempotency.claim('redact scope', 'op', 'failed', lease => '5 min');

-- Bad input.
SELECT idempotency.redact(NULL, 'op', 'k');
SELECT idempotency.redact_scope('');
BEGIN READ ONLY;
SELECT idempotency.redact('redact', 'op', '1');
ROLLBACK;

SELECT idempotency.forget_scope('redact', true), idempotency.forget_scope('redact scope', true), idempotency.forget_scope('redact scopes', true);
