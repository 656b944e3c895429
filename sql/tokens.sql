-- Fencing tokens: larger than whatever was given before, whatever became of the
-- sequence or of the rows.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;

-- The second, 2 bits of the timeline, and 18 of the sequence; a JavaScript number holds it.
SELECT token FROM idempotency.claim('tokens', 'op', 'form', lease => '5 min') \gset
SELECT abs((:token >> 20) - extract(epoch FROM clock_timestamp())) < 300 AS second, :token < (1::bigint << 53) AS fits,
	:token & ((1 << 18) - 1) = last_value & ((1 << 18) - 1) AS sequence FROM idempotency.token_seq;
SELECT to_timestamp((1::bigint << 33) - 1) AT TIME ZONE 'UTC' AS until;

-- The sequence goes back, as a restore, a promoted subscriber or a failover may
-- have it: nothing is put right, and every call gets a larger token all the same.
CREATE FUNCTION pg_temp.back(k text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM setval('idempotency.token_seq', 1);
	-- A row that came from a server whose clock was ahead.
	UPDATE idempotency.idempotency_keys SET token = token + (1000::bigint << 20), locked_until = now() WHERE scope = 'tokens' AND key = k AND status = 'in_progress';
END $$;
SELECT idempotency.set_policy('tokens', ttl => '1 day');
CREATE TEMP TABLE given (no serial, token bigint);
INSERT INTO given (token) SELECT token FROM idempotency.claim('tokens', 'tokens', 'k', lease => '5 min');
SELECT pg_temp.back('k');
INSERT INTO given (token) SELECT token FROM idempotency.lookup('tokens', 'tokens', 'k');
INSERT INTO given (token) SELECT token FROM idempotency.claim('tokens', 'tokens', 'k', lease => '5 min');
-- One that is larger for the row's sake alone keeps its bits of the sequence.
SELECT last_value, token & ((1 << 18) - 1) = last_value AS sequence FROM idempotency.token_seq, idempotency.lookup('tokens', 'tokens', 'k');
SELECT pg_temp.back('k');
INSERT INTO given (token) SELECT token FROM idempotency.lookup('tokens', 'tokens', 'k');
INSERT INTO given (token) SELECT token FROM idempotency.claim_abandoned('tokens', '5 min');
SELECT no, token > lag(token) OVER (ORDER BY no) AS larger FROM given ORDER BY no;
SELECT idempotency.hold('tokens', 'tokens', 'k', token => token) = token AS held_under_its_own FROM idempotency.lookup('tokens', 'tokens', 'k');
-- The late owner is refused, though the sequence has given its number again.
SELECT idempotency.complete('tokens', 'tokens', 'k', 200, token => token) FROM given WHERE no = 3;
\echo :SQLSTATE

-- A completion without a lease, once() and an import over such a row outdate its
-- token, too.
CREATE FUNCTION pg_temp.ahead(k text) RETURNS bigint LANGUAGE sql AS $$
	SELECT idempotency.fail('tokens', 'over', k, token => token) FROM idempotency.claim('tokens', 'over', k, lease => '5 min');
	UPDATE idempotency.idempotency_keys SET token = token + (1000::bigint << 20) WHERE scope = 'tokens' AND operation = 'over' AND key = k RETURNING token
$$;
CREATE TEMP TABLE over AS SELECT k, pg_temp.ahead(k) AS token FROM unnest(ARRAY['complete', 'once', 'batch', 'import']) AS k;
BEGIN;
SELECT outcome FROM idempotency.claim('tokens', 'over', 'complete');
SELECT idempotency.complete('tokens', 'over', 'complete', 200) > now() AS done;
COMMIT;
SELECT idempotency.once('tokens', 'over', 'once');
SELECT * FROM idempotency.once_batch('tokens', 'over', ARRAY['batch']);
UPDATE idempotency.idempotency_keys SET expires_at = now() WHERE scope = 'tokens' AND key = 'import';
SELECT idempotency.import_completed('tokens', 'over', 'import', 200);
SELECT k, status, i.token > o.token AS larger FROM over AS o JOIN idempotency.idempotency_keys AS i ON i.scope = 'tokens' AND i.operation = 'over' AND i.key = o.k ORDER BY k;

-- A floor that leaves no room is no reason to give a smaller one.
UPDATE idempotency.idempotency_keys SET token = 9223372036854775807, status = 'failed', locked_until = NULL WHERE scope = 'tokens' AND operation = 'op';
SELECT outcome FROM idempotency.claim('tokens', 'op', 'form', lease => '5 min');
\echo :SQLSTATE
SELECT idempotency.forget('tokens', 'op', 'form');
SELECT idempotency.drop_policy('tokens'), idempotency.forget_scope('tokens', true) > 0 AS forgotten;
