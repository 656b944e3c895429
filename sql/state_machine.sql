-- Every state that a key can be in, and what every call answers there. A cell
-- shows the answer, or SQLSTATE and reason, and how the key stands after the
-- transaction has ended.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
\pset format unaligned
\pset fieldsep ' | '
\pset footer off

CREATE TEMP TABLE cell (state text, call text, answer text, after text, no serial);

-- Brings a key into a state and returns the token that the caller of the cell
-- holds.
CREATE FUNCTION pg_temp.bring(state text, k text) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
	s CONSTANT text := 'state_machine';
	mine bigint;
BEGIN
	IF state = 'absent' THEN
		-- The token of a claim on some other key.
		RETURN (SELECT token FROM idempotency.claim(s, state, k || ' elsewhere', lease => '1 hour'));
	END IF;

	mine := (SELECT token FROM idempotency.claim(s, state, k, '{"a": 1}', note => 'first',
				hold_if_abandoned => state LIKE 'held%',
				lease => CASE
					WHEN state IN ('lapsed', 'taken', 'taken_completed', 'held', 'held_for_ages', 'expired_open') THEN interval '1 ms'
					WHEN state NOT LIKE 'own%' OR state LIKE 'own_leased%' THEN interval '1 hour' END));
	IF state = 'forgotten' THEN
		PERFORM idempotency.forget(s, state, k, force => true);
	ELSIF state ~ 'completed$' AND state NOT LIKE 'taken%' THEN
		PERFORM idempotency.complete(s, state, k, 201, 'body', token => mine);
	ELSIF state ~ 'failed$' THEN
		PERFORM idempotency.fail(s, state, k, 'broken', token => mine);
	ELSIF state ~ 'retry_later$' THEN
		PERFORM idempotency.fail(s, state, k, 'broken', '1 hour', token => mine);
	ELSIF state ~ 'released$' THEN
		PERFORM idempotency.release(s, state, k, token => mine);
	END IF;
	RETURN CASE WHEN state NOT LIKE 'own%' THEN mine END;
END $$;

-- The rest is a matter of time. A lease of a millisecond is over once the key
-- says so; a day of lifetime has passed once the row is that much older.
CREATE FUNCTION pg_temp.ripen(state text, k text) RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
	s CONSTANT text := 'state_machine';
	late bigint;
BEGIN
	IF (SELECT locked_until < clock_timestamp() + '1 min'
		FROM idempotency.idempotency_keys WHERE scope = s AND operation = state AND key = k)
	THEN
		FOR i IN 1..5000 LOOP
			EXIT WHEN (SELECT abandoned FROM idempotency.lookup(s, state, k));
			PERFORM pg_sleep(0.001);
		END LOOP;
	END IF;
	IF state LIKE 'taken%' THEN
		late := (SELECT token FROM idempotency.claim(s, state, k, lease => '1 hour'));
	END IF;
	IF state = 'taken_completed' THEN
		PERFORM idempotency.complete(s, state, k, 201, 'body', token => late);
	END IF;
	IF state LIKE 'expired%' OR state = 'held_for_ages' THEN
		UPDATE idempotency.idempotency_keys
		SET created_at = created_at - interval '2 days', expires_at = expires_at - interval '2 days',
			completed_at = completed_at - interval '2 days', locked_until = locked_until - interval '2 days'
		WHERE scope = s AND operation = state AND key = k;
	END IF;
END $$;

CREATE FUNCTION pg_temp.claim(state text, k text, request jsonb DEFAULT NULL, lease interval DEFAULT NULL,
							  claim_id uuid DEFAULT NULL) RETURNS text
LANGUAGE sql AS $$
	SELECT concat_ws(' ', c.outcome, 'attempt ' || c.attempt, CASE WHEN c.token IS NOT NULL THEN 'with token' END,
					 CASE WHEN c.taken_over THEN 'taken over' END, 'after ' || c.last_error,
					 c.response_status, c.response_body, CASE WHEN c.completed_at IS NOT NULL THEN 'dated' END,
					 CASE WHEN c.retry_after_ms = 1000 THEN 'retry in 1 s'
						  WHEN c.retry_after_ms BETWEEN 1 AND 3600000 THEN 'retry when it is over'
						  WHEN c.retry_after_ms IS NOT NULL THEN 'retry WRONG' END,
					 CASE WHEN c.fingerprint_checked THEN 'checked' END)
	FROM idempotency.claim('state_machine', state, k, request, lease => lease, claim_id => claim_id) c
$$;

-- One cell's call, in a savepoint of its own as PL/pgSQL has it.
CREATE FUNCTION pg_temp.call(state text, k text, mine bigint) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	s CONSTANT text := 'state_machine';
	code text;
	detail text;
BEGIN
	RETURN CASE k
		WHEN 'claim' THEN pg_temp.claim(state, k)
		WHEN 'claim, lease' THEN pg_temp.claim(state, k, lease => '1 hour')
		WHEN 'claim, same request' THEN pg_temp.claim(state, k, '{"a": 1.0}')
		WHEN 'claim, other request' THEN pg_temp.claim(state, k, '{"a": 2}')
		WHEN 'complete' THEN 'done ' || (idempotency.complete(s, state, k, 200) > now())
		WHEN 'complete, token' THEN 'done ' || (idempotency.complete(s, state, k, 200, token => mine) > now())
		WHEN 'complete as before' THEN 'done ' || (idempotency.complete(s, state, k, 201, 'body') > now())
		WHEN 'complete as before, token' THEN 'done ' || (idempotency.complete(s, state, k, 201, 'body', token => mine) > now())
		WHEN 'fail' THEN 'done ' || idempotency.fail(s, state, k, 'again')
		WHEN 'fail, token' THEN 'done ' || idempotency.fail(s, state, k, 'again', token => mine)
		WHEN 'release' THEN 'done ' || idempotency.release(s, state, k)
		WHEN 'release, token' THEN 'done ' || idempotency.release(s, state, k, mine)
		WHEN 'extend' THEN 'done ' || (idempotency.extend(s, state, k, '1 hour') > now())
		WHEN 'extend, token' THEN 'done ' || (idempotency.extend(s, state, k, '1 hour', mine) > now())
		WHEN 'replay' THEN coalesce((SELECT response_status || ' ' || response_body FROM idempotency.replay(s, state, k)), 'no row')
		WHEN 'lookup' THEN coalesce((SELECT l.status || CASE WHEN l.abandoned THEN ' abandoned' ELSE '' END FROM idempotency.lookup(s, state, k) l), 'no row')
		WHEN 'forget' THEN 'done ' || idempotency.forget(s, state, k)
		WHEN 'forget, force' THEN 'done ' || idempotency.forget(s, state, k, true)
	END;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, detail = CONSTRAINT_NAME;
	RETURN concat_ws(' ', code, nullif(detail, ''));
END $$;

CREATE PROCEDURE pg_temp.fill(VARIADIC states text[])
LANGUAGE plpgsql AS $$
DECLARE
	state text;
	k text;
	mine bigint;
	answer text;
	after text;
BEGIN
	FOREACH state IN ARRAY states LOOP
		FOREACH k IN ARRAY ARRAY['claim', 'claim, lease', 'claim, same request', 'claim, other request',
								 'complete', 'complete, token', 'complete as before', 'complete as before, token',
								 'fail', 'fail, token', 'release', 'release, token', 'extend', 'extend, token',
								 'replay', 'lookup', 'forget', 'forget, force']
		LOOP
			CONTINUE WHEN state LIKE 'own%' AND k LIKE '%token';
			mine := pg_temp.bring(state, k);
			IF state NOT LIKE 'own%' THEN
				COMMIT;
				PERFORM pg_temp.ripen(state, k);
				COMMIT;
			END IF;
			answer := pg_temp.call(state, k, mine);
			-- What is still open in this transaction cannot be committed.
			IF k LIKE 'claim%' AND k <> 'claim, lease' AND answer LIKE 'claimed%'
				OR state = 'own_open' AND (k IN ('extend', 'replay', 'lookup', 'forget') OR k LIKE 'claim%')
				OR state IN ('own_failed', 'own_released') AND k LIKE 'claim%' AND k <> 'claim, lease'
			THEN
				ROLLBACK;
			ELSE
				COMMIT;
			END IF;
			after := (SELECT concat_ws(' ', l.status, CASE WHEN l.abandoned THEN 'abandoned' END,
									   'attempt ' || l.attempt,
									   CASE WHEN l.token > mine THEN 'later token'
											WHEN l.token = mine THEN 'same token'
											WHEN l.token IS NOT NULL AND mine IS NOT NULL THEN 'WRONG token'
											WHEN l.token IS NOT NULL THEN 'with token' END,
									   l.last_error, l.note,
									   CASE WHEN l.completed_at IS NOT NULL THEN 'dated' END)
					  FROM idempotency.lookup('state_machine', state, k) l);
			INSERT INTO cell VALUES (state, k, answer, coalesce(after, '-'));
			COMMIT;
		END LOOP;
	END LOOP;
END $$;

CREATE FUNCTION pg_temp.show(text) RETURNS TABLE (call text, answer text, after text)
LANGUAGE sql AS 'SELECT call, answer, after FROM cell WHERE state = $1 ORDER BY no';

-- "dated" says that completed_at is set, "done true" that the time returned is
-- ahead.

-- Never claimed. The token is that of a claim on another key.
CALL pg_temp.fill('absent');
SELECT * FROM pg_temp.show('absent');
-- Claimed and then forgotten by force; the owner still has its token.
CALL pg_temp.fill('forgotten');
SELECT * FROM pg_temp.show('forgotten');
-- In progress, lease live.
CALL pg_temp.fill('live');
SELECT * FROM pg_temp.show('live');
-- In progress, lease lapsed, nobody has taken over.
CALL pg_temp.fill('lapsed');
SELECT * FROM pg_temp.show('lapsed');
-- Lapsed and taken over; the caller is the late owner.
CALL pg_temp.fill('taken');
SELECT * FROM pg_temp.show('taken');
-- Taken over and completed by the later owner.
CALL pg_temp.fill('taken_completed');
SELECT * FROM pg_temp.show('taken_completed');
-- Lapsed with hold_if_abandoned: counts as held, however long ago.
CALL pg_temp.fill('held', 'held_for_ages');
SELECT * FROM pg_temp.show('held');
SELECT call, answer FROM pg_temp.show('held_for_ages') EXCEPT SELECT call, answer FROM pg_temp.show('held');
CALL pg_temp.fill('completed');
SELECT * FROM pg_temp.show('completed');
CALL pg_temp.fill('failed');
SELECT * FROM pg_temp.show('failed');
-- Failed, and retry_in is not over.
CALL pg_temp.fill('retry_later');
SELECT * FROM pg_temp.show('retry_later');
-- Expired, and not cleaned up. Absent to everybody, except that the owner of
-- an unfinished claim may still finish it while nobody else has the key.
CALL pg_temp.fill('expired_completed', 'expired_failed', 'expired_retry_later', 'expired_open');
SELECT * FROM pg_temp.show('expired_completed');
SELECT * FROM pg_temp.show('expired_failed');
SELECT * FROM pg_temp.show('expired_retry_later');
SELECT * FROM pg_temp.show('expired_open');
-- In the running transaction: claimed without a lease, and its ends.
CALL pg_temp.fill('own_open', 'own_completed', 'own_failed', 'own_retry_later', 'own_released');
SELECT * FROM pg_temp.show('own_open');
SELECT * FROM pg_temp.show('own_completed');
SELECT * FROM pg_temp.show('own_failed');
SELECT * FROM pg_temp.show('own_retry_later');
SELECT * FROM pg_temp.show('own_released');
-- In the running transaction: claimed with a lease, no token given.
CALL pg_temp.fill('own_leased', 'own_leased_completed', 'own_leased_failed', 'own_leased_retry_later', 'own_leased_released');
SELECT * FROM pg_temp.show('own_leased');
SELECT * FROM pg_temp.show('own_leased_completed');
SELECT * FROM pg_temp.show('own_leased_failed');
SELECT * FROM pg_temp.show('own_leased_retry_later');
SELECT * FROM pg_temp.show('own_leased_released');
