-- Unknown outcome: a held key is nobody's until a person has decided.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
-- What a call says: its value, or SQLSTATE and reason of its error.
CREATE FUNCTION pg_temp.says(call text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE answer text; word text;
BEGIN
	EXECUTE 'SELECT ' || call INTO answer;
	RETURN answer;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS word = CONSTRAINT_NAME;
	RETURN trim(sqlstate || ' ' || word);
END $$;

-- The network did not answer.
SELECT token FROM idempotency.claim('hold', 'pay', '1', '{"a": 1}', lease => '1 us', note => 'trace 7') \gset
SELECT idempotency.checkpoint('hold', 'pay', '1', 'sent', '{"to": "card network"}', '5 min', :token) > now() AS renewed;
SELECT idempotency.hold('hold', 'pay', '1', 'no answer from the card network', :token) > 0 AS held;
-- Everybody is told so, at once; a wait does not wait.
SELECT outcome, token, attempt, response_body, last_error, retry_after_ms FROM idempotency.claim('hold', 'pay', '1', '{"a": 1}', lease => '5 min', wait => '1 min');
SELECT outcome FROM idempotency.claim('hold', 'pay', '1', '{"a": 2}', lease => '5 min');
SELECT count(*) AS replays FROM idempotency.replay('hold', 'pay', '1');
BEGIN;
SELECT outcome FROM idempotency.claim('hold', 'pay', '1');
COMMIT;
-- What a person needs to decide.
SELECT status, token = :token AS token, abandoned, recovery_point, state, last_error, note, expires_at FROM idempotency.lookup('hold', 'pay', '1');
SELECT key, status, token = :token AS token, attempt, recovery_point, state, last_error, note, locked_until FROM idempotency.abandoned WHERE scope = 'hold';
-- A careless outer handler of the owner: refused, all but complete().
SELECT idempotency.fail('hold', 'pay', '1', 'caught', token => :token);
SELECT call, pg_temp.says(format(call, :token)) FROM (VALUES
	($$idempotency.fail('hold', 'pay', '1', 'caught', token => %s)$$), ($$idempotency.release('hold', 'pay', '1', %s)$$),
	($$idempotency.extend('hold', 'pay', '1', '1 min', %s)$$), ($$idempotency.checkpoint('hold', 'pay', '1', 'p', token => %s)$$),
	($$idempotency.hold('hold', 'pay', '1', 'again', %s)$$)) AS v(call);
SELECT call, pg_temp.says(call) FROM (VALUES
	($$idempotency.forget('hold', 'pay', '1')$$), ($$idempotency.redact('hold', 'pay', '1')$$), ($$idempotency.once('hold', 'pay', '1')$$),
	($$idempotency.forget_scope('hold')$$), ($$idempotency.redact_scope('hold')$$), ($$(SELECT count(*) FROM idempotency.claim_abandoned('pay'))$$)) AS v(call);
-- A held key never expires and is not cleaned up.
SELECT idempotency.cleanup() >= 0 AS cleaned;
SELECT status, expires_at FROM idempotency.lookup('hold', 'pay', '1');
-- Decided: the charge was made. With the token that lookup() shows.
SELECT idempotency.complete('hold', 'pay', '1', 201, 'charged', token => (SELECT token FROM idempotency.lookup('hold', 'pay', '1'))) BETWEEN now() + interval '23 hours' AND now() + interval '25 hours' AS ordinary_life;
SELECT outcome, response_status, response_body FROM idempotency.claim('hold', 'pay', '1', '{"a": 1}', lease => '5 min');
SELECT count(*) AS left FROM idempotency.abandoned WHERE scope = 'hold';

-- Decided: nothing happened. The next attempt may begin, the old token is
-- worth nothing.
SELECT token AS first FROM idempotency.claim('hold', 'pay', '2', lease => '5 min') \gset
SELECT idempotency.hold('hold', 'pay', '2', 'no answer', :first) > 0 AS held;
SELECT idempotency.resolve('hold', 'pay', '2', 'retry', 'asked the network: no charge');
SELECT status, last_error, note, expires_at - now() > interval '23 hours' AS failed_ttl FROM idempotency.lookup('hold', 'pay', '2');
SELECT pg_temp.says(format($$idempotency.complete('hold', 'pay', '2', 201, token => %s)$$, :first)) AS late_owner;
SELECT outcome, attempt, taken_over, last_error, token > :first AS larger FROM idempotency.claim('hold', 'pay', '2', lease => '5 min');
SELECT pg_temp.says(format($$idempotency.complete('hold', 'pay', '2', 201, token => %s)$$, :first)) AS late_owner;
SELECT pg_temp.says($$idempotency.resolve('hold', 'pay', '2', 'retry')$$) AS nothing_to_decide;
-- Decided: forget it.
SELECT token FROM idempotency.claim('hold', 'pay', '3', lease => '5 min') \gset
SELECT idempotency.hold('hold', 'pay', '3', token => :token) > 0 AS held;
SELECT idempotency.resolve('hold', 'pay', '3', 'forget');
SELECT count(*) AS rows FROM idempotency.lookup('hold', 'pay', '3');
SELECT pg_temp.says(format($$idempotency.complete('hold', 'pay', '3', 201, token => %s)$$, :token)) AS late_owner;
-- By force, for who knows.
SELECT token FROM idempotency.claim('hold', 'pay', '4', lease => '5 min') \gset
SELECT idempotency.hold('hold', 'pay', '4', token => :token) > 0 AS held;
SELECT idempotency.forget('hold', 'pay', '4', force => true);
-- An abandoned key can be decided about, too; a live or finished one cannot.
SELECT token FROM idempotency.claim('hold', 'pay', '5', lease => '1 us') \gset
SELECT idempotency.resolve('hold', 'pay', '5', 'retry');
SELECT outcome, attempt, taken_over FROM idempotency.claim('hold', 'pay', '5', lease => '5 min');
SELECT idempotency.resolve('hold', 'pay', '5', 'retry');
SELECT pg_temp.says($$idempotency.resolve('hold', 'pay', '1', 'retry')$$) AS completed, pg_temp.says($$idempotency.resolve('hold', 'pay', 'none', 'retry')$$) AS absent;
SELECT idempotency.resolve('hold', 'pay', '5', 'redo');
SELECT idempotency.resolve('hold', 'pay', '5', NULL);

-- A claim without a lease can be held, too: it gets a token then.
BEGIN;
SELECT outcome FROM idempotency.claim('hold', 'no lease', '1', '{"a": 1}');
SELECT idempotency.hold('hold', 'no lease', '1', 'looks odd') > 0 AS held;
SELECT pg_temp.says($$idempotency.fail('hold', 'no lease', '1')$$) AS fail, pg_temp.says($$idempotency.release('hold', 'no lease', '1')$$) AS release;
COMMIT;
SELECT status, token IS NOT NULL AS has_token, last_error FROM idempotency.lookup('hold', 'no lease', '1');
SELECT outcome FROM idempotency.claim('hold', 'no lease', '1', lease => '1 min');
SELECT idempotency.complete('hold', 'no lease', '1', 200, token => token) > now() AS done FROM idempotency.lookup('hold', 'no lease', '1');
BEGIN;
SELECT outcome FROM idempotency.claim('hold', 'no lease', '2');
SELECT idempotency.hold('hold', 'no lease', '2', 'wait a moment') > 0 AS held;
SELECT idempotency.complete('hold', 'no lease', '2', 200, 'it was nothing') > now() AS done;
COMMIT;
SELECT response_body FROM idempotency.replay('hold', 'no lease', '2');
BEGIN;
SELECT outcome FROM idempotency.claim('hold', 'no lease', '3');
SAVEPOINT a;
SELECT idempotency.hold('hold', 'no lease', '3') > 0 AS held;
ROLLBACK TO a;
SELECT idempotency.complete('hold', 'no lease', '3', 200) > now() AS done;
COMMIT;

-- hold_if_abandoned: held from the moment the lease lapses, never taken over,
-- never expired, by argument ...
SELECT token FROM idempotency.claim('hold', 'argument', '1', lease => '1 us', ttl => '1 us', hold_if_abandoned => true) \gset
SELECT outcome, token FROM idempotency.claim('hold', 'argument', '1', lease => '5 min');
SELECT status, abandoned, token = :token AS token FROM idempotency.lookup('hold', 'argument', '1');
SELECT key, status FROM idempotency.abandoned WHERE scope = 'hold' AND operation = 'argument';
SELECT count(*) FROM idempotency.claim_abandoned('argument');
SELECT idempotency.cleanup() >= 0 AS cleaned;
SELECT pg_temp.says($$idempotency.forget('hold', 'argument', '1')$$) AS forget, idempotency.forget_scope('hold argument') AS forget_scope;
SELECT call, pg_temp.says(format(call, :token)) FROM (VALUES
	($$idempotency.fail('hold', 'argument', '1', 'caught', token => %s)$$), ($$idempotency.release('hold', 'argument', '1', %s)$$),
	($$idempotency.extend('hold', 'argument', '1', '1 min', %s)$$), ($$idempotency.checkpoint('hold', 'argument', '1', 'p', token => %s)$$),
	($$idempotency.hold('hold', 'argument', '1', 'again', %s)$$)) AS v(call);
SELECT outcome FROM idempotency.claim('hold', 'argument', '1', lease => '5 min');
SELECT idempotency.resolve('hold', 'argument', '1', 'retry');
SELECT outcome, attempt FROM idempotency.claim('hold', 'argument', '1', lease => '1 us');
-- ... which is this claim's, not the key's: the next one did not ask for it.
SELECT outcome, attempt, taken_over FROM idempotency.claim('hold', 'argument', '1', lease => '1 min');
SELECT outcome FROM idempotency.claim('hold', 'argument', '2', hold_if_abandoned => true);
-- ... and by policy, which the argument overrides.
SELECT idempotency.set_policy('policy', hold_if_abandoned => true);
SELECT outcome FROM idempotency.claim('hold', 'policy', '1', lease => '1 us');
SELECT outcome FROM idempotency.claim('hold', 'policy', '1', lease => '1 min');
SELECT outcome FROM idempotency.claim('hold', 'policy', '2', lease => '1 us', hold_if_abandoned => false);
SELECT outcome, taken_over FROM idempotency.claim('hold', 'policy', '2', lease => '1 us');
SELECT outcome FROM idempotency.claim('hold', 'policy', '2', lease => '1 min');
BEGIN;
SELECT outcome FROM idempotency.claim('hold', 'policy', '3');
SELECT idempotency.complete('hold', 'policy', '3', 200) > now() AS without_a_lease;
COMMIT;
SELECT idempotency.drop_policy('policy');

-- max_attempts: what fails or is abandoned so often is held.
SELECT idempotency.set_policy('attempts', max_attempts => 2);
SELECT token FROM idempotency.claim('hold', 'attempts', '1', lease => '1 min') \gset
SELECT idempotency.fail('hold', 'attempts', '1', 'first', token => :token);
SELECT token, attempt FROM idempotency.claim('hold', 'attempts', '1', lease => '1 min') \gset
SELECT idempotency.fail('hold', 'attempts', '1', 'second', token => :token);
SELECT status, attempt, last_error, expires_at FROM idempotency.lookup('hold', 'attempts', '1');
SELECT outcome FROM idempotency.claim('hold', 'attempts', '1', lease => '1 min');
SELECT outcome FROM idempotency.claim('hold', 'attempts', '2', lease => '1 us');
SELECT outcome, attempt, taken_over FROM idempotency.claim('hold', 'attempts', '2', lease => '1 us');
SELECT outcome, attempt FROM idempotency.claim('hold', 'attempts', '2', lease => '1 min');
SELECT status, attempt, abandoned FROM idempotency.lookup('hold', 'attempts', '2');
-- In one transaction, too; and a person may allow one more.
BEGIN;
SELECT outcome FROM idempotency.claim('hold', 'attempts', '3');
SELECT idempotency.fail('hold', 'attempts', '3', 'first');
COMMIT;
BEGIN;
SELECT outcome, attempt FROM idempotency.claim('hold', 'attempts', '3');
SELECT idempotency.fail('hold', 'attempts', '3', 'second');
COMMIT;
SELECT status, attempt, last_error FROM idempotency.lookup('hold', 'attempts', '3');
SELECT idempotency.resolve('hold', 'attempts', '3', 'retry');
BEGIN;
SELECT outcome, attempt, last_error FROM idempotency.claim('hold', 'attempts', '3');
SELECT idempotency.complete('hold', 'attempts', '3', 200) > now() AS done;
COMMIT;
SELECT idempotency.drop_policy('attempts');

-- Only by force.
SELECT count(*) > 0 AS held FROM idempotency.abandoned WHERE scope = 'hold' AND status = 'held';
SELECT idempotency.forget_scope('hold') > 0 AS finished;
SELECT count(*) > 0 AS held FROM idempotency.abandoned WHERE scope = 'hold' AND status = 'held';
SELECT idempotency.forget_scope('hold', force => true) > 0 AS held;
SELECT count(*) FROM idempotency.abandoned WHERE scope = 'hold';
