-- lookup(): the record of a key in one call.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;

-- Status, times and the response, whatever has become of each.
SELECT token FROM idempotency.claim('lookup', 'op', 'done', '{"a": 1}', lease => '5 min', claim_id => '11111111-1111-1111-1111-111111111111') \gset
SELECT status, response_status, response_body FROM idempotency.lookup('lookup', 'op', 'done');
SELECT idempotency.complete('lookup', 'op', 'done', 201, 'body', '{"A": "b"}', token => :token) > now() AS done;
SELECT status, completed_at > created_at AS times, response_status, response_headers, response_body, response_bytes, fingerprint = idempotency.fingerprint('{"a": 1}') AS fingerprint FROM idempotency.lookup('lookup', 'op', 'done');
SELECT idempotency.import_completed('lookup', 'op', 'bytes', 200, response_bytes => '\x00ff', request => '{"a": 1}');
SELECT status, response_body, response_bytes, fingerprint = idempotency.fingerprint('{"a": 1}') AS fingerprint FROM idempotency.lookup('lookup', 'op', 'bytes');
-- Where the response was removed that is no error, as it is for replay().
SELECT idempotency.redact('lookup', 'op', 'bytes');
SELECT status, response_status, response_bytes, redacted_at IS NOT NULL AS redacted FROM idempotency.lookup('lookup', 'op', 'bytes');
-- Nor where it is due to be, and clean-up has not come yet.
UPDATE idempotency.idempotency_keys SET response_expires_at = now() WHERE scope = 'lookup' AND key = 'done';
SELECT status, response_status, response_headers, response_body, response_expires_at <= now() AS due FROM idempotency.lookup('lookup', 'op', 'done');
SELECT * FROM idempotency.replay('lookup', 'op', 'done');
\echo :SQLSTATE

-- Whose claim it is is shown to operators only: with the token or the claim_id
-- somebody else's claim could be completed.
CREATE ROLE regress_lookup_app;
CREATE ROLE regress_lookup_operator;
SELECT idempotency.grant_usage('regress_lookup_app'), idempotency.grant_operator('regress_lookup_operator');
SELECT outcome FROM idempotency.claim('lookup', 'op', 'open', lease => '5 min', claim_id => '22222222-2222-2222-2222-222222222222');
SET ROLE regress_lookup_app;
SELECT status, attempt, token, claim_id, locked_until > now() AS live FROM idempotency.lookup('lookup', 'op', 'open');
SELECT idempotency.complete('lookup', 'op', 'open', 200, token => token) FROM idempotency.lookup('lookup', 'op', 'open');
\echo :SQLSTATE
SET ROLE regress_lookup_operator;
SELECT status, token > 0 AS token, claim_id FROM idempotency.lookup('lookup', 'op', 'open');
RESET ROLE;
-- Behind a definer's function it is the definer who counts.
CREATE FUNCTION pg_temp.see() RETURNS boolean LANGUAGE sql SECURITY DEFINER AS $$SELECT token > 0 FROM idempotency.lookup('lookup', 'op', 'open')$$;
SET ROLE regress_lookup_app;
SELECT pg_temp.see();
RESET ROLE;
DROP OWNED BY regress_lookup_app, regress_lookup_operator;
DROP ROLE regress_lookup_app, regress_lookup_operator;

SELECT idempotency.forget_scope('lookup', true) > 0 AS forgotten;
