--
-- Policies: lifetimes and rules per operation. An argument comes before the
-- policy, the policy before the setting, for new claims only. On other
-- connections: t/027_policies.pl.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
SET idempotency.default_ttl = '24 h';
SET idempotency.failed_ttl = '24 h';
SET idempotency.default_lease = '60 s';
-- What a call says: its SQLSTATE, message and hint.
CREATE FUNCTION pg_temp.error_of(command text, OUT code text, OUT message text, OUT hint text)
LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	code := 'ok';
EXCEPTION WHEN others THEN
	GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
END $$;
CREATE FUNCTION pg_temp.hours(later timestamptz, earlier timestamptz) RETURNS numeric
LANGUAGE sql AS $$ SELECT round((extract(epoch FROM later - earlier) / 3600)::numeric, 2) $$;

-- Nothing set: the settings.
SELECT * FROM idempotency.effective_policies WHERE operation IS NULL;

-- A whole policy; a month is 30 days, a day is 24 hours.
SELECT idempotency.set_policy('policy charge', ttl => '1 month 1 day', failed_ttl => '2 h', response_ttl => '1 h',
	lease => '90 s', hold_if_abandoned => true, max_attempts => 2);
SELECT * FROM idempotency.policies WHERE operation = 'policy charge';
SELECT * FROM idempotency.effective_policies WHERE operation = 'policy charge';

-- ttl: the policy's, unless the call says otherwise.
SELECT pg_temp.hours(expires_at, created_at) FROM idempotency.claim('policy', 'policy charge', 'a', lease => '1 h');
SELECT pg_temp.hours(expires_at, created_at) FROM idempotency.claim('policy', 'policy charge', 'b', lease => '1 h', ttl => '3 h');
SELECT pg_temp.hours(expires_at, created_at) FROM idempotency.claim('policy', 'policy other', 'a', lease => '1 h');
-- lease: only the length for extend() and checkpoint() where the claim's own is
-- not known; it makes no committed claim.
SELECT token IS NULL AS without_lease FROM idempotency.claim('policy', 'policy charge', 'unleased')
WHERE idempotency.complete('policy', 'policy charge', 'unleased', 200) IS NOT NULL;
UPDATE idempotency.idempotency_keys SET lease_ms = NULL, locked_until = now() + interval '1 min' WHERE scope = 'policy' AND operation = 'policy charge' AND key = 'a';
SELECT idempotency.extend('policy', 'policy charge', 'a', token => k.token) BETWEEN now() + interval '90 s' AND clock_timestamp() + interval '90 s' AS policy
FROM idempotency.idempotency_keys AS k WHERE scope = 'policy' AND operation = 'policy charge' AND key = 'a';
SELECT idempotency.extend('policy', 'policy charge', 'a', lease => '10 s', token => k.token) BETWEEN now() + interval '10 s' AND clock_timestamp() + interval '10 s' AS argument
FROM idempotency.idempotency_keys AS k WHERE scope = 'policy' AND operation = 'policy charge' AND key = 'a';
-- failed_ttl.
SELECT idempotency.fail('policy', 'policy charge', 'a', 'no', token => k.token)
FROM idempotency.idempotency_keys AS k WHERE scope = 'policy' AND operation = 'policy charge' AND key = 'a';
SELECT pg_temp.hours(expires_at, now()) FROM idempotency.lookup('policy', 'policy charge', 'a');
-- max_attempts: the second attempt is the last, then a person decides.
SELECT outcome, attempt FROM idempotency.claim('policy', 'policy charge', 'a', lease => '1 h');
SELECT idempotency.fail('policy', 'policy charge', 'a', 'no again', token => k.token)
FROM idempotency.idempotency_keys AS k WHERE scope = 'policy' AND operation = 'policy charge' AND key = 'a';
SELECT outcome, attempt FROM idempotency.claim('policy', 'policy charge', 'a', lease => '1 h');
-- hold_if_abandoned: from the lapse of the lease on, without being asked for.
SELECT outcome FROM idempotency.claim('policy', 'policy charge', 'c', lease => '1 microsecond');
SELECT outcome FROM idempotency.claim('policy', 'policy charge', 'c', lease => '1 h');
-- The call may ask for the opposite.
SELECT outcome FROM idempotency.claim('policy', 'policy charge', 'd', lease => '1 microsecond', hold_if_abandoned => false);
SELECT outcome, taken_over FROM idempotency.claim('policy', 'policy charge', 'd', lease => '1 h');

-- For new claims only.
SELECT idempotency.set_policy('policy charge', ttl => '5 h');
SELECT pg_temp.hours(expires_at, created_at) FROM idempotency.lookup('policy', 'policy charge', 'b');
-- It replaces the whole policy: what is left out means the setting.
SELECT * FROM idempotency.policies WHERE operation = 'policy charge';
SELECT * FROM idempotency.effective_policies WHERE operation = 'policy charge';
SELECT outcome FROM idempotency.claim('policy', 'policy charge', 'e', lease => '1 microsecond');
SELECT outcome, taken_over FROM idempotency.claim('policy', 'policy charge', 'e', lease => '1 h');
-- The superuser's limit comes before it.
SET idempotency.max_ttl = '2 h';
SELECT pg_temp.hours(expires_at, created_at) FROM idempotency.claim('policy', 'policy charge', 'f', lease => '1 h');
RESET idempotency.max_ttl;

-- Dropped.
SELECT idempotency.drop_policy('policy charge');
SELECT idempotency.drop_policy('policy charge');
SELECT pg_temp.hours(expires_at, created_at) FROM idempotency.claim('policy', 'policy charge', 'g', lease => '1 h');

-- response_ttl: the response goes at its time, before the key, deleted or not.
SELECT idempotency.set_policy('policy brief', response_ttl => '20 ms');
BEGIN;
SELECT outcome FROM idempotency.claim('policy', 'policy brief', 'a', request => '1');
SELECT idempotency.complete('policy', 'policy brief', 'a', 200, 'body', '{"h": 1}') IS NOT NULL AS done;
COMMIT;
SELECT pg_sleep(0.03);
SELECT * FROM pg_temp.error_of($$SELECT idempotency.replay('policy', 'policy brief', 'a')$$);
SELECT * FROM pg_temp.error_of($$SELECT FROM idempotency.claim('policy', 'policy brief', 'a', request => '1')$$);
-- Recognised all the same: it is not done again, and another request is told apart.
SELECT outcome FROM idempotency.claim('policy', 'policy brief', 'a', request => '2');
SELECT response_body IS NOT NULL AS still_there, redacted_at IS NULL AS not_redacted
FROM idempotency.idempotency_keys WHERE scope = 'policy' AND operation = 'policy brief';
CALL idempotency.maintain();
SELECT status, response_status, response_body, response_headers, redacted_at IS NOT NULL AS redacted, fingerprint IS NOT NULL AS recognised
FROM idempotency.idempotency_keys WHERE scope = 'policy' AND operation = 'policy brief';
SELECT code FROM pg_temp.error_of($$SELECT idempotency.replay('policy', 'policy brief', 'a')$$);
SELECT code FROM pg_temp.error_of($$SELECT FROM idempotency.claim('policy', 'policy brief', 'a', request => '1')$$);

-- Bad arguments.
SELECT e.* FROM (VALUES (1, $$NULL$$), (2, $$''$$), (3, $$'o', ttl => '0'$$), (4, $$'o', ttl => '-1 s'$$), (5, $$'o', ttl => '400 days'$$),
	(6, $$'o', failed_ttl => '0'$$), (7, $$'o', response_ttl => '-1 day'$$), (8, $$'o', lease => '0'$$),
	(9, $$'o', max_attempts => 0$$), (10, $$'o', max_attempts => -1$$), (11, $$repeat('x', 256)$$)) AS c(n, arguments),
	LATERAL pg_temp.error_of('SELECT idempotency.set_policy(' || c.arguments || ')') AS e ORDER BY c.n;
SELECT * FROM pg_temp.error_of('SELECT idempotency.drop_policy(NULL)');
SELECT * FROM pg_temp.error_of('SET TRANSACTION READ ONLY; SELECT idempotency.set_policy(''o'')');
SELECT count(*) FROM idempotency.policies WHERE operation = 'o';

-- The table refuses the same, whoever writes it: a negative lifetime would make
-- every key expire at once.
SELECT c.name, e.code FROM (VALUES ('ttl', $$'0'$$), ('failed_ttl', $$'-1 s'$$), ('response_ttl', $$'1 month -30 days'$$), ('lease', $$'-1 day'$$),
	('max_attempts', '0')) AS c(name, value),
	LATERAL pg_temp.error_of(format('INSERT INTO idempotency.policies (operation, %1$I) VALUES (%1$L, %2$s)', c.name, c.value)) AS e ORDER BY 1;
SELECT conname, pg_get_constraintdef(oid), obj_description(oid, 'pg_constraint') IS NOT NULL AS explained
FROM pg_constraint WHERE conrelid = 'idempotency.policies'::regclass AND contype IN ('c', 'p') ORDER BY conname;
-- Where the constraints are gone, it counts as not given.
BEGIN;
DO $$
DECLARE
	name text;
BEGIN
	FOR name IN SELECT conname FROM pg_constraint WHERE conrelid = 'idempotency.policies'::regclass AND contype = 'c' LOOP
		EXECUTE format('ALTER TABLE idempotency.policies DROP CONSTRAINT %I', name);
	END LOOP;
END $$;
INSERT INTO idempotency.policies (operation, ttl, failed_ttl, response_ttl, lease, max_attempts)
VALUES ('policy by hand', '-1 h', '-1 h', '-1 h', '-1 h', -1);
SELECT outcome, pg_temp.hours(expires_at, created_at) FROM idempotency.claim('policy', 'policy by hand', 'a', lease => '1 h');
UPDATE idempotency.idempotency_keys SET lease_ms = NULL, locked_until = now() + interval '10 s' WHERE scope = 'policy' AND operation = 'policy by hand';
SELECT round(extract(epoch FROM idempotency.extend('policy', 'policy by hand', 'a', token => token) - now()), -1) AS lease,
	idempotency.fail('policy', 'policy by hand', 'a', 'no', token => token)
FROM idempotency.idempotency_keys WHERE scope = 'policy' AND operation = 'policy by hand';
SELECT status, pg_temp.hours(expires_at, now()) FROM idempotency.lookup('policy', 'policy by hand', 'a');
SELECT outcome FROM idempotency.claim('policy', 'policy by hand', 'b');
SELECT idempotency.complete('policy', 'policy by hand', 'b', 200, 'kept') > now() AS done;
SELECT response_body FROM idempotency.replay('policy', 'policy by hand', 'b');
ROLLBACK;

SELECT idempotency.drop_policy('policy brief');
SELECT idempotency.forget_scope('policy', force => true);
