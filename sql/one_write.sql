-- A key that is claimed and completed in one transaction costs one row insert:
-- no row is updated, none is dead.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
\set SHOW_CONTEXT never
-- Plans are made while the table is empty and known to be so, and must not go
-- through the whole of it later.
TRUNCATE idempotency.idempotency_keys;
VACUUM (ANALYZE) idempotency.idempotency_keys;
\c -
SELECT idempotency.cleanup(), idempotency.forget_scope('one_write');
SELECT outcome FROM idempotency.claim('one_write', 'first', '1', lease => '1 us');
SELECT outcome, token FROM idempotency.claim('one_write', 'first', '1', lease => '1 hour') \gset
SELECT idempotency.release('one_write', 'first', '1', :token);
SELECT idempotency.forget('one_write', 'first', '1');

-- What this transaction has done to the table. What the connection did before
-- is counted in until it is reported, so that is asked for before each.
CREATE FUNCTION pg_temp.written(OUT inserted bigint, OUT updated bigint, OUT deleted bigint, OUT sequential_scans bigint) LANGUAGE sql AS $$
	SELECT pg_stat_get_xact_tuples_inserted(t), pg_stat_get_xact_tuples_updated(t), pg_stat_get_xact_tuples_deleted(t), pg_stat_get_xact_numscans(t)
	FROM (SELECT 'idempotency.idempotency_keys'::regclass::oid) t (t)
$$;

-- Claim, work, complete, with its look-up and its replay.
SELECT pg_stat_force_next_flush();
BEGIN;
SELECT outcome FROM idempotency.claim('one_write', 'one', '1', '{"a": 1}', note => 'note');
SELECT * FROM pg_temp.written();
SELECT idempotency.complete('one_write', 'one', '1', 200, 'body', '{"A": "b"}') > now() AS done;
SELECT outcome FROM idempotency.claim('one_write', 'one', '1', '{"a": 1}');
SELECT idempotency.complete('one_write', 'one', '1', 200, 'body', '{"A": "b"}') > now() AS done;
SELECT * FROM pg_temp.written();
COMMIT;
-- What asks writes nothing, whatever the answer is.
SELECT pg_stat_force_next_flush();
BEGIN;
SELECT outcome FROM idempotency.claim('one_write', 'one', '1', '{"a": 1}');
SELECT outcome FROM idempotency.claim('one_write', 'one', '1', '{"a": 2}');
SELECT count(*) FROM idempotency.replay('one_write', 'one', '1');
SELECT count(*) FROM idempotency.lookup('one_write', 'one', '1');
SELECT * FROM pg_temp.written();
-- No transaction number is taken for it, either.
SELECT pg_current_xact_id_if_assigned();
SELECT outcome FROM idempotency.claim('one_write', 'one', '2');
SELECT idempotency.release('one_write', 'one', '2');
SELECT pg_current_xact_id_if_assigned();
COMMIT;
-- A claim with a lease: one row, changed once.
SELECT pg_stat_force_next_flush();
BEGIN;
SELECT outcome FROM idempotency.claim('one_write', 'two', '1', lease => '1 hour');
SELECT * FROM pg_temp.written();
SELECT idempotency.complete('one_write', 'two', '1', 200) > now() AS done;
SELECT * FROM pg_temp.written();
ROLLBACK;

-- Thousands, each in its transaction.
CREATE PROCEDURE pg_temp.work(first int, last int) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN first..last LOOP
		PERFORM FROM idempotency.claim('one_write', 'many', i::text, '{"a": 1}');
		PERFORM idempotency.complete('one_write', 'many', i::text, 200, 'body');
		COMMIT;
	END LOOP;
END $$;
SELECT pg_stat_force_next_flush();
SELECT pg_stat_reset_single_table_counters('idempotency.idempotency_keys'::regclass);
CALL pg_temp.work(1, 3000);
SELECT pg_stat_force_next_flush();
SELECT n_tup_ins, n_tup_upd, n_tup_del, n_dead_tup, seq_scan FROM pg_stat_user_tables WHERE relid = 'idempotency.idempotency_keys'::regclass;
SELECT count(*) FROM idempotency.idempotency_keys WHERE scope = 'one_write' AND operation = 'many' AND status = 'completed';
-- The statements that were planned in the beginning, and those of one key.
SELECT pg_stat_force_next_flush();
SELECT pg_stat_reset_single_table_counters('idempotency.idempotency_keys'::regclass);
SELECT idempotency.cleanup(), idempotency.forget_scope('one_write nobody');
SELECT token FROM idempotency.claim('one_write', 'last', '1', lease => '1 hour') \gset
SELECT idempotency.extend('one_write', 'last', '1', token => :token) > now() AS done;
SELECT idempotency.fail('one_write', 'last', '1', token => :token);
SELECT idempotency.forget('one_write', 'last', '1');
SELECT pg_stat_force_next_flush();
SELECT seq_scan, seq_tup_read FROM pg_stat_user_tables WHERE relid = 'idempotency.idempotency_keys'::regclass;
-- Nothing is kept for what such a key does not need.
SELECT count(*) FROM idempotency.idempotency_keys
WHERE scope = 'one_write' AND operation = 'many' AND num_nulls(token, claimed_at, checkpointed_at, locked_until, response_expires_at, redacted_at, claim_id, hold_if_abandoned, recovery_point, state, response_headers, response_bytes, last_error, note) < 14;
-- A committed claim costs one insert and one update.
CREATE PROCEDURE pg_temp.lease(first int, last int) LANGUAGE plpgsql AS $$
DECLARE
	mine bigint;
BEGIN
	FOR i IN first..last LOOP
		mine := (SELECT token FROM idempotency.claim('one_write', 'leased', i::text, lease => '1 hour'));
		COMMIT;
		PERFORM idempotency.complete('one_write', 'leased', i::text, 200, 'body', token => mine);
		COMMIT;
	END LOOP;
END $$;
SELECT pg_stat_force_next_flush();
SELECT pg_stat_reset_single_table_counters('idempotency.idempotency_keys'::regclass);
CALL pg_temp.lease(1, 500);
SELECT pg_stat_force_next_flush();
SELECT n_tup_ins, n_tup_upd, n_tup_del, seq_scan FROM pg_stat_user_tables WHERE relid = 'idempotency.idempotency_keys'::regclass;
SELECT idempotency.forget_scope('one_write', true) > 3000 AS cleared;
-- Who loses to a caller that takes no locks is told to try again, without the
-- detail of the index, which would show the key. An index that an administrator
-- added is reported as what it is: a retry would not help.
CREATE FUNCTION pg_temp.completed_after(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	message text;
	detail text;
BEGIN
	PERFORM idempotency.claim('one_write', 'raced', 'secret');
	EXECUTE command;
	PERFORM idempotency.complete('one_write', 'raced', 'secret', 200, 'body');
	RETURN 'completed';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
	RETURN concat_ws('; ', sqlstate, message, nullif(detail, ''));
END $$;
SELECT pg_temp.completed_after($$ INSERT INTO idempotency.idempotency_keys (scope, operation, key, status, attempt, created_at, completed_at, expires_at)
	VALUES ('one_write', 'raced', 'secret', 'completed', 1, now(), now(), now() + '1 hour') $$);
SELECT pg_temp.completed_after($$ CREATE UNIQUE INDEX added ON idempotency.idempotency_keys ((status::text)) WHERE scope = 'one_write' AND operation = 'raced';
	INSERT INTO idempotency.idempotency_keys (scope, operation, key, status, attempt, created_at, completed_at, expires_at)
	VALUES ('one_write', 'raced', 'other', 'completed', 1, now(), now(), now() + '1 hour') $$);
-- The primary key is known by what it is on, not by its name.
SELECT pg_temp.completed_after($$ ALTER TABLE idempotency.idempotency_keys RENAME CONSTRAINT idempotency_keys_pkey TO renamed;
	INSERT INTO idempotency.idempotency_keys (scope, operation, key, status, attempt, created_at, completed_at, expires_at)
	VALUES ('one_write', 'raced', 'secret', 'completed', 1, now(), now(), now() + '1 hour') $$);
-- Any other constraint is named, but the row is not shown.
SELECT pg_temp.completed_after($$ ALTER TABLE idempotency.idempotency_keys ADD CONSTRAINT added CHECK (scope <> 'one_write') NOT VALID $$);
SELECT pg_temp.completed_after('SELECT 1');
SELECT idempotency.forget('one_write', 'raced', 'secret');
-- A row that is swallowed is not taken for written.
CREATE FUNCTION pg_temp.swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
\set swallow 'CREATE TRIGGER swallow BEFORE INSERT OR UPDATE OR DELETE ON idempotency.idempotency_keys FOR EACH ROW EXECUTE FUNCTION pg_temp.swallow()'
SELECT pg_temp.completed_after(:'swallow');
BEGIN;
:swallow;
\set VERBOSITY terse
SAVEPOINT s;
SELECT idempotency.once('one_write', 'swallowed', '1');
ROLLBACK TO s;
SELECT * FROM idempotency.once_batch('one_write', 'swallowed', ARRAY['1', '2']);
ROLLBACK TO s;
SELECT outcome FROM idempotency.claim('one_write', 'swallowed', '1', lease => '1 min');
ROLLBACK;
\unset VERBOSITY
-- Without the primary key nothing goes on.
SELECT pg_temp.completed_after('ALTER TABLE idempotency.idempotency_keys DROP CONSTRAINT idempotency_keys_pkey');
