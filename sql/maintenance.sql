--
-- maintain(), cleanup() and the errors of the rest of maintenance: what expires
-- is deleted, what is live, leased or held is not. In the background: t/02*.pl.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
\set SHOW_CONTEXT never
CREATE FUNCTION pg_temp.error_of(command text, OUT code text, OUT message text, OUT hint text)
LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	code := 'ok';
EXCEPTION WHEN others THEN
	GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
END $$;

-- One key of each kind, each with a lifetime that is over, but for the first.
SET idempotency.failed_ttl = '1 h';
BEGIN;
SELECT outcome FROM idempotency.claim('maintenance', 'op', 'live', ttl => '1 h');
SELECT idempotency.complete('maintenance', 'op', 'live', 200) IS NOT NULL AS done;
COMMIT;
SELECT outcome FROM idempotency.claim('maintenance', 'op', 'leased', ttl => '1 ms', lease => '1 h');
SELECT outcome FROM idempotency.claim('maintenance', 'op', 'lapsed', ttl => '1 ms', lease => '1 ms');
SELECT outcome FROM idempotency.claim('maintenance', 'op', 'hold_if_abandoned', ttl => '1 ms', lease => '1 ms', hold_if_abandoned => true);
SELECT outcome FROM idempotency.claim('maintenance', 'op', 'held', ttl => '1 ms', lease => '1 h');
SELECT idempotency.hold('maintenance', 'op', 'held', 'unknown', token => token) > 0 AS held
FROM idempotency.idempotency_keys WHERE scope = 'maintenance' AND key = 'held';
SELECT outcome FROM idempotency.claim('maintenance', 'op', 'failed', ttl => '1 ms', lease => '1 h');
SELECT idempotency.fail('maintenance', 'op', 'failed', 'no', token => token)
FROM idempotency.idempotency_keys WHERE scope = 'maintenance' AND key = 'failed';
INSERT INTO idempotency.idempotency_keys (created_at, expires_at, completed_at, attempt, scope, operation, key, status)
SELECT now() - interval '2 days', now() - interval '1 day', now(), 1, 'maintenance', 'op', 'old ' || g, 'completed'
FROM generate_series(1, 5) AS g;
SELECT pg_sleep(0.02);

-- cleanup(): in this transaction, so many, only what expired so long ago.
BEGIN;
SELECT idempotency.cleanup(older_than => '2 days');
SELECT idempotency.cleanup(older_than => '1 h', max_rows => 2);
SELECT idempotency.cleanup(max_rows => 0);
SELECT count(*) FROM idempotency.idempotency_keys WHERE scope = 'maintenance' AND key LIKE 'old%';
ROLLBACK;
SELECT count(*) FROM idempotency.idempotency_keys WHERE scope = 'maintenance' AND key LIKE 'old%';
SELECT idempotency.cleanup(older_than => '1 h');
SELECT key, status FROM idempotency.idempotency_keys WHERE scope = 'maintenance' ORDER BY key;

-- cleanup() of one scope, of one operation, of both; what lives, is leased or
-- held stays there, too.
BEGIN;
INSERT INTO idempotency.idempotency_keys (created_at, expires_at, completed_at, attempt, scope, operation, key, status)
SELECT now() - interval '2 days', now() + CASE WHEN k = 'live' THEN interval '1 day' ELSE interval '-1 day' END, now(), 1,
	'maintenance ' || s, 'op ' || o, k, CASE WHEN k = 'held' THEN 'held' ELSE 'completed' END
FROM unnest(ARRAY['a', 'b']) AS s, unnest(ARRAY['1', '2']) AS o, unnest(ARRAY['live', 'held', 'x', 'y', 'z']) AS k;
CREATE FUNCTION pg_temp.left_over() RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(of, '; ' ORDER BY of) FROM (SELECT right(scope, 1) || right(operation, 1) || ': ' || string_agg(key, ' ' ORDER BY key) AS of
		FROM idempotency.idempotency_keys WHERE scope LIKE 'maintenance _' GROUP BY scope, operation) AS o $$;
SELECT pg_temp.left_over();
SELECT idempotency.cleanup(scope => 'maintenance a', max_rows => 4), idempotency.cleanup(scope => 'maintenance a', older_than => '2 days');
SELECT pg_temp.left_over();
SELECT idempotency.cleanup(scope => 'maintenance a'), idempotency.cleanup(scope => 'maintenance a');
SELECT pg_temp.left_over();
SELECT idempotency.cleanup(scope => 'maintenance b', operation => 'op 2', max_rows => 1);
SELECT pg_temp.left_over();
SELECT idempotency.cleanup(scope => 'maintenance b', operation => 'op 2'), idempotency.cleanup(scope => 'maintenance c', operation => 'op 1');
SELECT pg_temp.left_over();
SELECT idempotency.cleanup(operation => 'op 1', max_rows => 2), idempotency.cleanup(operation => 'op 3');
SELECT pg_temp.left_over();
SELECT idempotency.cleanup(operation => 'op 1');
SELECT pg_temp.left_over();
ROLLBACK;
-- Of a scope, only that is read; of an operation, what has expired. By plans that
-- were made while the table was small, and made anew on statistics.
CREATE FUNCTION pg_temp.reads(call text, OUT deleted bigint, OUT by_key bigint, OUT by_expiry bigint, OUT scans bigint) LANGUAGE plpgsql AS $$
DECLARE
	key_index oid := 'idempotency.idempotency_keys_pkey'::regclass;
	expiry_index oid := 'idempotency.idempotency_keys_expires_at_idx'::regclass;
BEGIN
	by_key := -pg_stat_get_xact_tuples_returned(key_index);
	by_expiry := -pg_stat_get_xact_tuples_returned(expiry_index);
	scans := -pg_stat_get_xact_numscans('idempotency.idempotency_keys'::regclass);
	EXECUTE 'SELECT idempotency.cleanup(' || call || ')' INTO deleted;
	by_key := by_key + pg_stat_get_xact_tuples_returned(key_index);
	by_expiry := by_expiry + pg_stat_get_xact_tuples_returned(expiry_index);
	scans := scans + pg_stat_get_xact_numscans('idempotency.idempotency_keys'::regclass);
END $$;
INSERT INTO idempotency.idempotency_keys (created_at, expires_at, completed_at, attempt, scope, operation, key, status)
SELECT now() - interval '2 days', now() + CASE WHEN g <= 3000 THEN interval '-1 day' ELSE interval '1 day' END, now(), 1,
	'maintenance reads ' || g % 10, 'maintenance op ' || g % 3, g, 'completed'
FROM generate_series(1, 9000) AS g;
CREATE TEMP VIEW reads_of_each AS
SELECT call, deleted, by_key, CASE WHEN by_expiry < 1000 THEN 'few' ELSE by_expiry::text END AS by_expiry, scans
FROM (VALUES (1, $$scope => 'maintenance reads 1'$$), (2, $$scope => 'maintenance reads 2', operation => 'maintenance op 2'$$),
		(3, $$operation => 'maintenance op 1', max_rows => 10$$), (4, $$max_rows => 10$$)) AS c(n, call),
	LATERAL pg_temp.reads(call) ORDER BY n;
BEGIN;
SELECT * FROM pg_temp.reads_of_each;
ROLLBACK;
ANALYZE idempotency.idempotency_keys;
BEGIN;
SELECT * FROM pg_temp.reads_of_each;
ROLLBACK;
SELECT sum(idempotency.forget_scope('maintenance reads ' || n)) FROM generate_series(0, 9) AS n;

-- maintain(): the rest of what has expired, and a record of it.
CALL idempotency.maintain();
SELECT key, status FROM idempotency.idempotency_keys WHERE scope = 'maintenance' ORDER BY key;
SELECT started_by, sqlstate, error, batches >= 1 AS batches, finished_at >= started_at AS in_order
FROM idempotency.cleanup_runs ORDER BY id DESC LIMIT 1;
-- Once the failed key's time is over, it goes, too.
UPDATE idempotency.idempotency_keys SET expires_at = now() WHERE scope = 'maintenance' AND key = 'failed';
CALL idempotency.maintain();
SELECT key, status FROM idempotency.idempotency_keys WHERE scope = 'maintenance' ORDER BY key;
-- What was held is still held.
SELECT key, outcome FROM unnest(ARRAY['held', 'hold_if_abandoned', 'leased']) AS key, idempotency.claim('maintenance', 'op', key, lease => '1 h');

-- Clean-up goes on where it was: it does not read again what it has deleted,
-- which the index shows until it is vacuumed. cleanup() is a single pass.
CREATE FUNCTION pg_temp.fill(what text, number int, step interval) RETURNS void LANGUAGE sql AS $$
	INSERT INTO idempotency.idempotency_keys (created_at, expires_at, completed_at, attempt, scope, operation, key, status)
	SELECT now() - interval '2 days', now() - interval '1 day' + g * step, now(), 1, 'maintenance', 'op', what || g, 'completed'
	FROM generate_series(1, number) AS g $$;
CREATE FUNCTION pg_temp.index_reads() RETURNS bigint LANGUAGE sql AS
	$$ SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelid = 'idempotency.idempotency_keys_expires_at_idx'::regclass $$;
SELECT pg_temp.fill('many ', 30000, '1 ms');
SELECT pg_stat_force_next_flush();
SELECT pg_temp.index_reads() AS before \gset
SELECT idempotency.cleanup();
SELECT pg_stat_force_next_flush();
SELECT pg_temp.index_reads() - :before BETWEEN 30000 AND 31000 AS read_once;
SELECT pg_temp.fill('equal ', 30000, '0');
SELECT pg_stat_force_next_flush();
SELECT pg_temp.index_reads() AS before \gset
SELECT idempotency.cleanup();
SELECT pg_stat_force_next_flush();
SELECT pg_temp.index_reads() - :before BETWEEN 30000 AND 61000 AS read_once_and_seen_dead;
SELECT pg_temp.fill('many ', 3000, '1 ms');
SELECT pg_stat_force_next_flush();
SELECT pg_temp.index_reads() AS before \gset
CALL idempotency.maintain();
SELECT pg_stat_force_next_flush();
SELECT pg_temp.index_reads() - :before < 4000 + 31000 AS read_once;
-- Nor the responses that it has removed.
INSERT INTO idempotency.idempotency_keys (created_at, expires_at, completed_at, response_expires_at, attempt, scope, operation, key, status, response_body)
SELECT now() - interval '2 days', now() + interval '1 day', now(), now() - interval '1 day' + g * interval '1 ms', 1, 'maintenance', 'op', 'body ' || g, 'completed', 'body'
FROM generate_series(1, 3000) AS g;
SELECT pg_stat_force_next_flush();
SELECT idx_tup_read AS before FROM pg_stat_user_indexes WHERE indexrelid = 'idempotency.idempotency_keys_response_expires_at_idx'::regclass \gset
CALL idempotency.maintain();
SELECT pg_stat_force_next_flush();
SELECT idx_tup_read - :before BETWEEN 3000 AND 4000 AS read_once FROM pg_stat_user_indexes WHERE indexrelid = 'idempotency.idempotency_keys_response_expires_at_idx'::regclass;
SELECT count(*), count(response_body) AS bodies FROM idempotency.idempotency_keys WHERE scope = 'maintenance' AND key LIKE 'body%';

-- Where nothing can be committed, maintain() says so. It is the block that
-- matters, not who calls.
BEGIN;
CALL idempotency.maintain();
ROLLBACK;
BEGIN;
SAVEPOINT s;
CALL idempotency.maintain();
ROLLBACK TO s;
SELECT 'the connection goes on';
COMMIT;
CREATE FUNCTION pg_temp.calls() RETURNS void LANGUAGE plpgsql AS 'BEGIN CALL idempotency.maintain(); END';
SELECT pg_temp.calls();
CREATE PROCEDURE pg_temp.calls_with_set() LANGUAGE plpgsql SET search_path = pg_catalog AS 'BEGIN CALL idempotency.maintain(); END';
CALL pg_temp.calls_with_set();
-- Where it can, it does: in a procedure, in a DO block.
CREATE PROCEDURE pg_temp.calls_freely() LANGUAGE plpgsql AS 'BEGIN CALL idempotency.maintain(); COMMIT; END';
CALL pg_temp.calls_freely();
DO 'BEGIN CALL idempotency.maintain(); END';
-- With a SET clause of its own it cannot commit; it crashed a prototype.
ALTER PROCEDURE idempotency.maintain() SET search_path = pg_catalog;
CALL idempotency.maintain();
ALTER PROCEDURE idempotency.maintain() RESET ALL;

-- Of a scope that the role is bound to, as every call; a scope or an operation is
-- checked as everywhere.
CREATE ROLE regress_maintenance_bound;
SELECT idempotency.grant_operator('regress_maintenance_bound'), idempotency.bind_role('regress_maintenance_bound', 'maintenance%');
SET ROLE regress_maintenance_bound;
SELECT idempotency.cleanup(scope => 'maintenance a');
SELECT idempotency.cleanup(scope => 'elsewhere');
RESET ROLE;
SELECT idempotency.unbind_role('regress_maintenance_bound');
DROP OWNED BY regress_maintenance_bound;
DROP ROLE regress_maintenance_bound;
SELECT e.* FROM (VALUES (1, $$scope => ''$$), (2, $$operation => ''$$), (3, $$scope => repeat('x', 256)$$), (4, $$operation => repeat('x', 256)$$)) AS c(n, arguments),
	LATERAL pg_temp.error_of('SELECT idempotency.cleanup(' || c.arguments || ')') AS e ORDER BY n;

-- By an operator, who is neither superuser nor owner; nobody else may.
CREATE ROLE regress_maintenance_operator;
CREATE ROLE regress_maintenance_user;
SELECT idempotency.grant_operator('regress_maintenance_operator'), idempotency.grant_usage('regress_maintenance_user');
SET ROLE regress_maintenance_operator;
CALL idempotency.maintain();
BEGIN;
CALL idempotency.maintain();
ROLLBACK;
SELECT current_user;
SELECT idempotency.cleanup(max_rows => 0);
SET ROLE regress_maintenance_user;
CALL idempotency.maintain();
SELECT idempotency.cleanup(max_rows => 0);
RESET ROLE;

-- Read-only, and bad arguments.
SET default_transaction_read_only = on;
CALL idempotency.maintain();
RESET default_transaction_read_only;
SELECT * FROM pg_temp.error_of($$SELECT idempotency.cleanup(max_rows => -1)$$);
SELECT * FROM pg_temp.error_of($$SELECT idempotency.cleanup(older_than => '-1 s')$$);
SELECT code FROM pg_temp.error_of($$SELECT idempotency.cleanup(older_than => '300000 years')$$);
-- Without pg_cron.
SELECT * FROM pg_temp.error_of($$SELECT idempotency.schedule_cleanup()$$);
SELECT code FROM pg_temp.error_of($$SELECT idempotency.unschedule_cleanup()$$);
-- Settings: bounds, and who may set them.
SELECT code, message FROM pg_temp.error_of($$SET idempotency.cleanup_interval = '1 min'$$);
SELECT name, setting, unit, min_val, max_val, context FROM pg_settings WHERE name LIKE 'idempotency.cleanup%' AND name <> 'idempotency.cleanup_enabled' ORDER BY name;

DROP OWNED BY regress_maintenance_operator, regress_maintenance_user;
DROP ROLE regress_maintenance_operator, regress_maintenance_user;
SELECT idempotency.forget_scope('maintenance', force => true);
