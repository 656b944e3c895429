-- once_batch(): once() for many keys, in the order in which they are given.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;

SELECT * FROM idempotency.once_batch('once_batch', 'events', ARRAY['c', 'a', 'b']);
SELECT * FROM idempotency.once_batch('once_batch', 'events', ARRAY['d', 'c', 'a', 'e']);
-- Duplicates inside the array: the first is the first.
SELECT * FROM idempotency.once_batch('once_batch', 'events', ARRAY['g', 'f', 'g', 'a', 'f', 'g', 'a']);
-- Bytes decide, not a collation; many dimensions are read in order.
SELECT * FROM idempotency.once_batch('once_batch', 'bytes', ARRAY['ä', 'a', 'A', 'a ', 'Z', 'a', E'\U0001F600', 'aa']);
SELECT * FROM idempotency.once_batch('once_batch', 'bytes', ARRAY[['x', 'a'], ['y', 'x']]);
SELECT * FROM idempotency.once_batch('once_batch', 'events', '{}');
-- What once() and once_batch() say is the same thing.
SELECT idempotency.once('once_batch', 'events', 'a') AS batch_first, idempotency.once('once_batch', 'events', 'h') AS new;
SELECT * FROM idempotency.once_batch('once_batch', 'events', ARRAY['h', 'i']);
SELECT status, attempt, token, completed_at = created_at AS at_once, expires_at - created_at AS remembered FROM idempotency.lookup('once_batch', 'events', 'i');
SELECT outcome FROM idempotency.claim('once_batch', 'events', 'i', lease => '1 min');
SELECT * FROM idempotency.once_batch('once_batch', 'ttl', ARRAY['1'], ttl => '1 day');
SELECT expires_at - created_at AS remembered FROM idempotency.lookup('once_batch', 'ttl', '1');

-- All or nothing with the transaction and with a savepoint of it.
BEGIN;
SELECT * FROM idempotency.once_batch('once_batch', 'undone', ARRAY['1', '2']);
SAVEPOINT a;
SELECT * FROM idempotency.once_batch('once_batch', 'undone', ARRAY['2', '3']);
ROLLBACK TO a;
SELECT * FROM idempotency.once_batch('once_batch', 'undone', ARRAY['3', '1']);
ROLLBACK;
SELECT * FROM idempotency.once_batch('once_batch', 'undone', ARRAY['1', '2', '3']);

-- Joined to the batch, as a consumer does it: effects of the first ones only.
CREATE TEMP TABLE inbox (id text, amount int);
CREATE TEMP TABLE ledger (id text, amount int);
INSERT INTO inbox VALUES ('p1', 10), ('p2', 20), ('p1', 10), ('p3', 30);
INSERT INTO ledger
SELECT DISTINCT i.id, i.amount
FROM idempotency.once_batch('once_batch', 'ledger', ARRAY(SELECT id FROM inbox)) AS o JOIN inbox AS i ON i.id = o.key
WHERE o.first;
INSERT INTO ledger
SELECT DISTINCT i.id, i.amount
FROM idempotency.once_batch('once_batch', 'ledger', ARRAY(SELECT id FROM inbox)) AS o JOIN inbox AS i ON i.id = o.key
WHERE o.first;
SELECT * FROM ledger ORDER BY id;

-- Expired and failed keys are first again, once; their tokens are outdated.
SELECT token AS expired FROM idempotency.claim('once_batch', 'again', 'expired', lease => '1 min', ttl => '1 us') \gset
SELECT idempotency.complete('once_batch', 'again', 'expired', 200, 'old', token => :expired, ttl => '1 us') IS NOT NULL AS done;
SELECT token AS failed FROM idempotency.claim('once_batch', 'again', 'failed', lease => '1 min') \gset
SELECT idempotency.fail('once_batch', 'again', 'failed', 'no', token => :failed);
SELECT token AS gone FROM idempotency.claim('once_batch', 'again', 'gone', lease => '1 us', ttl => '1 us') \gset
SELECT * FROM idempotency.once_batch('once_batch', 'again', ARRAY['failed', 'new', 'gone', 'expired', 'failed']);
SELECT * FROM idempotency.once_batch('once_batch', 'again', ARRAY['failed', 'new', 'gone', 'expired', 'failed']);
SELECT k.key, l.status, l.attempt, l.last_error, l.completed_at = l.created_at AS at_once, l.token > v.token AS larger, r.response_body
FROM (VALUES ('expired', :expired), ('failed', :failed), ('gone', :gone)) AS v(key, token), LATERAL (SELECT v.key) AS k,
	idempotency.lookup('once_batch', 'again', v.key) AS l, idempotency.replay('once_batch', 'again', v.key) AS r;
SELECT idempotency.complete('once_batch', 'again', 'gone', 200, token => :gone);

-- A claim that nobody has decided: nothing of the batch counts.
SELECT token AS open FROM idempotency.claim('once_batch', 'mixed', 'open', lease => '1 min') \gset
SELECT * FROM idempotency.once_batch('once_batch', 'mixed', ARRAY['one', 'open', 'two']);
SELECT count(*) AS written FROM idempotency.keys_by_operation WHERE operation = 'mixed' AND status = 'completed';
SELECT idempotency.hold('once_batch', 'mixed', 'open', 'no answer', :open) > 0 AS held;
SELECT * FROM idempotency.once_batch('once_batch', 'mixed', ARRAY['one', 'open', 'two']);
-- From the end of its lease on, a claim with hold_if_abandoned is held, too;
-- another is undecided until somebody takes it over.
SELECT outcome FROM idempotency.claim('once_batch', 'mixed', 'abandoned', lease => '1 us', hold_if_abandoned => true);
SELECT * FROM idempotency.once_batch('once_batch', 'mixed', ARRAY['one', 'abandoned']);
SELECT outcome FROM idempotency.claim('once_batch', 'mixed', 'lapsed', lease => '1 us');
SELECT * FROM idempotency.once_batch('once_batch', 'mixed', ARRAY['one', 'lapsed']);
SELECT token AS waits FROM idempotency.claim('once_batch', 'mixed', 'waits', lease => '1 min') \gset
SELECT idempotency.fail('once_batch', 'mixed', 'waits', retry_in => '1 hour', token => :waits);
SELECT * FROM idempotency.once_batch('once_batch', 'mixed', ARRAY['one', 'waits']);

-- A claim of the same transaction loses to the batch, and cannot be completed.
BEGIN;
SELECT outcome FROM idempotency.claim('once_batch', 'loser', '1');
SELECT * FROM idempotency.once_batch('once_batch', 'loser', ARRAY['1']);
SELECT idempotency.complete('once_batch', 'loser', '1', 200);
\echo :SQLSTATE
ROLLBACK;

-- It takes no key locks, so max_claims_per_transaction is no limit.
BEGIN;
SET LOCAL idempotency.max_claims_per_transaction = 1;
SELECT count(*) FILTER (WHERE first) AS first FROM idempotency.once_batch('once_batch', 'many', ARRAY(SELECT g::text FROM generate_series(1, 2000) g));
SELECT count(*) AS key_locks FROM pg_locks WHERE objsubid = 18756 AND pid = pg_backend_pid();
COMMIT;
-- And it never reads the whole table, whatever the planner's settings say.
SELECT pg_stat_force_next_flush();
\c -
SELECT seq_scan AS before FROM pg_stat_user_tables WHERE relid = 'idempotency.idempotency_keys'::regclass \gset
SET enable_indexscan = off;
SET enable_bitmapscan = off;
SET enable_seqscan = on;
SET plan_cache_mode = force_custom_plan;
SELECT count(*) FILTER (WHERE first) AS first FROM idempotency.once_batch('once_batch', 'many', ARRAY(SELECT g::text FROM generate_series(1, 2010) g));
RESET enable_indexscan;
RESET enable_bitmapscan;
RESET enable_seqscan;
RESET plan_cache_mode;
SELECT pg_stat_force_next_flush();
SELECT seq_scan - :before AS scans FROM pg_stat_user_tables WHERE relid = 'idempotency.idempotency_keys'::regclass;

-- A batch that is delivered again writes nothing; in one that is partly new, the
-- first key that is known costs a dead row, and no further one does.
CREATE FUNCTION pg_temp.written(OUT inserted bigint, OUT updated bigint, OUT deleted bigint) LANGUAGE sql VOLATILE AS $$
	SELECT n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_user_tables WHERE relid = 'idempotency.idempotency_keys'::regclass $$;
SELECT pg_stat_force_next_flush(), pg_stat_reset_single_table_counters('idempotency.idempotency_keys'::regclass);
SELECT count(*) FILTER (WHERE first) AS first FROM idempotency.once_batch('once_batch', 'dead', ARRAY(SELECT 'k' || g FROM generate_series(1000, 1999) g));
SELECT pg_stat_force_next_flush();
SELECT * FROM pg_temp.written();
SELECT count(*) FILTER (WHERE first) AS first FROM idempotency.once_batch('once_batch', 'dead', ARRAY(SELECT 'k' || g FROM generate_series(1000, 1999) g));
SELECT pg_stat_force_next_flush();
SELECT * FROM pg_temp.written();
SELECT count(*) FILTER (WHERE first) AS first FROM idempotency.once_batch('once_batch', 'dead', ARRAY(SELECT CASE WHEN g < 1000 THEN 'j' ELSE 'k' END || g FROM generate_series(900, 1999) g));
SELECT pg_stat_force_next_flush();
SELECT * FROM pg_temp.written();

-- What an administrator has hung on the table is heeded, as for every other call.
CREATE FUNCTION pg_temp.batch_and_call(hung text) RETURNS TABLE (key text, first boolean, note text) LANGUAGE plpgsql AS $$
DECLARE
	called text := 'once_batch';
	detail text;
BEGIN
	EXECUTE hung;
	PERFORM idempotency.once_batch('once_batch', 'hung', ARRAY['new', 'known']);
	called := 'once';
	PERFORM idempotency.once('once_batch', 'hung', 'single');
	RETURN QUERY SELECT k.key, o.first, to_jsonb(k) ->> 'note' FROM idempotency.idempotency_keys AS k LEFT JOIN idempotency.once_batch('once_batch', 'hung', ARRAY['known', 'new', 'single']) AS o ON o.key = k.key
		WHERE k.scope = 'once_batch' AND k.operation = 'hung' ORDER BY k.key;
EXCEPTION WHEN integrity_constraint_violation OR feature_not_supported OR generated_always THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
	key := SQLSTATE;
	note := concat_ws(': ', called, nullif(detail, ''));
	RETURN NEXT;
END $$;
CREATE FUNCTION pg_temp.annotate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.note := 'by a trigger'; RETURN NEW; END $$;
BEGIN;
SELECT * FROM pg_temp.batch_and_call('CREATE TRIGGER annotate BEFORE INSERT ON idempotency.idempotency_keys FOR EACH ROW EXECUTE FUNCTION pg_temp.annotate()');
ROLLBACK;
BEGIN;
SELECT * FROM pg_temp.batch_and_call($$ CREATE RULE heeded AS ON INSERT TO idempotency.idempotency_keys DO ALSO NOTIFY heeded $$);
ROLLBACK;
BEGIN;
SELECT * FROM pg_temp.batch_and_call($$ ALTER TABLE idempotency.idempotency_keys ADD region text NOT NULL DEFAULT 'here' $$);
ROLLBACK;
BEGIN;
SELECT * FROM pg_temp.batch_and_call($$ ALTER TABLE idempotency.idempotency_keys ADD region text $$);
ROLLBACK;
BEGIN;
SELECT * FROM pg_temp.batch_and_call($$ ALTER TABLE idempotency.idempotency_keys ADD region text;
	UPDATE idempotency.idempotency_keys SET region = 'there'; ALTER TABLE idempotency.idempotency_keys ALTER region SET NOT NULL $$);
ROLLBACK;
BEGIN;
SELECT * FROM pg_temp.batch_and_call($$ ALTER TABLE idempotency.idempotency_keys ADD CHECK (key <> 'known') NOT VALID $$);
ROLLBACK;
BEGIN;
SELECT * FROM pg_temp.batch_and_call($$ CREATE INDEX ON idempotency.idempotency_keys ((upper(note))) WHERE scope = 'once_batch' $$);
ROLLBACK;
-- A constraint that is not the key's is not taken for it, and shows no key.
BEGIN;
SELECT * FROM pg_temp.batch_and_call($$ CREATE UNIQUE INDEX ON idempotency.idempotency_keys ((left(key, 0))) WHERE scope = 'once_batch' AND operation = 'hung' $$);
ROLLBACK;
BEGIN;
SELECT * FROM pg_temp.batch_and_call($$ ALTER TABLE idempotency.idempotency_keys ADD EXCLUDE USING btree (scope WITH =) WHERE (scope = 'once_batch' AND operation = 'hung') $$);
ROLLBACK;
BEGIN;
SELECT * FROM pg_temp.batch_and_call($$ UPDATE idempotency.idempotency_keys SET note = ''; ALTER TABLE idempotency.idempotency_keys ALTER note SET NOT NULL $$);
ROLLBACK;
BEGIN;
SELECT * FROM pg_temp.batch_and_call($$ ALTER TABLE idempotency.idempotency_keys ALTER attempt ADD GENERATED ALWAYS AS IDENTITY $$);
ROLLBACK;
BEGIN;
SELECT * FROM pg_temp.batch_and_call($$ ALTER TABLE idempotency.idempotency_keys ALTER note SET DEFAULT 'by default' $$);
ROLLBACK;

-- Bad input.
SELECT * FROM idempotency.once_batch(NULL, 'op', ARRAY['k']);
SELECT * FROM idempotency.once_batch('once_batch', NULL, ARRAY['k']);
SELECT * FROM idempotency.once_batch('once_batch', 'op', NULL);
SELECT * FROM idempotency.once_batch('once_batch', 'op', ARRAY['k', NULL]);
SELECT * FROM idempotency.once_batch('once_batch', 'op', ARRAY['k', '']);
SELECT * FROM idempotency.once_batch('once_batch', 'op', ARRAY['k', repeat('k', 256)]);
SELECT * FROM idempotency.once_batch('once_batch', 'op', ARRAY['k'], ttl => '-1 s');
BEGIN READ ONLY;
SELECT * FROM idempotency.once_batch('once_batch', 'op', ARRAY['k']);
ROLLBACK;
SELECT status FROM idempotency.lookup('once_batch', 'op', 'k');

-- No two keys of a batch expire at the same moment, and none before its time,
-- whichever way they are put in: clean-up goes by the moment of expiry.
CREATE FUNCTION pg_temp.spread(batch text) RETURNS TABLE (keys bigint, moments bigint, early bigint, late bigint) LANGUAGE sql VOLATILE AS $$
	SELECT count(*), count(DISTINCT expires_at), count(*) FILTER (WHERE expires_at < created_at + '1 hour'),
		count(*) FILTER (WHERE expires_at >= created_at + '1 hour 3 ms')
	FROM idempotency.idempotency_keys WHERE scope = 'once_batch' AND operation = batch $$;
SELECT count(*) FROM idempotency.once_batch('once_batch', 'spread', ARRAY(SELECT g::text FROM generate_series(1, 3000) AS g), ttl => '1 hour');
SELECT * FROM pg_temp.spread('spread');
BEGIN;
CREATE TRIGGER annotate BEFORE INSERT ON idempotency.idempotency_keys FOR EACH ROW EXECUTE FUNCTION pg_temp.annotate();
SELECT count(*) FROM idempotency.once_batch('once_batch', 'spread by SQL', ARRAY(SELECT g::text FROM generate_series(1, 3000) AS g), ttl => '1 hour');
SELECT * FROM pg_temp.spread('spread by SQL');
ROLLBACK;
UPDATE idempotency.idempotency_keys SET expires_at = now() - interval '1 s' WHERE scope = 'once_batch' AND operation = 'spread';
SELECT count(*) FILTER (WHERE first) AS first_again FROM idempotency.once_batch('once_batch', 'spread', ARRAY(SELECT g::text FROM generate_series(1, 3000) AS g), ttl => '1 hour');
SELECT * FROM pg_temp.spread('spread');

-- More keys than a call takes.
SELECT count(*) FROM idempotency.once_batch('once_batch', 'op', array_fill('k'::text, ARRAY[10000001]));
\echo :SQLSTATE
-- What a large array costs before anything is written can be cancelled: here the
-- table is missing, and that would be the next thing to be noticed.
CREATE TEMP TABLE large (keys text[]);
ALTER TABLE large ALTER keys SET STORAGE EXTERNAL;
INSERT INTO large SELECT array_agg(md5(g::text)) FROM generate_series(1, 1000000) AS g;
BEGIN;
SELECT count(*) FROM idempotency.once_batch('once_batch', 'op', '{}');
ALTER TABLE idempotency.idempotency_keys RENAME TO away;
SET LOCAL statement_timeout = '100 ms';
SELECT count(*) FROM large, idempotency.once_batch('once_batch', 'op', keys);
\echo :SQLSTATE
ROLLBACK;
DROP TABLE large;

SELECT idempotency.forget_scope('once_batch', true) > 2000 AS forgotten;

-- One key that a claim holds up need not hold up the others: skip_undecided
-- says NULL for it. That is not "done before": such an event is to come again.
SELECT outcome FROM idempotency.claim('once_batch', 'skip', 'leased', lease => '5 min');
SELECT idempotency.record_failure('once_batch', 'skip', 'failed', 'no', '1 hour'), idempotency.record_failure('once_batch', 'skip', 'retry', 'no');
SELECT token FROM idempotency.claim('once_batch', 'skip', 'held', lease => '5 min') \gset
SELECT idempotency.hold('once_batch', 'skip', 'held', token => :token) > 0 AS held;
SELECT idempotency.once('once_batch', 'skip', 'done');
SELECT * FROM idempotency.once_batch('once_batch', 'skip', ARRAY['new', 'failed']);
\pset null NULL
SELECT * FROM idempotency.once_batch('once_batch', 'skip', ARRAY['failed', 'new', 'held', 'done', 'leased', 'retry', 'failed', 'new'], skip_undecided => true);
\pset null ''
SELECT key, status, attempt FROM idempotency.idempotency_keys WHERE scope = 'once_batch' AND operation = 'skip' ORDER BY key;

-- A failed key's token is the floor of the one that replaces it.
SELECT token FROM idempotency.claim('once_batch', 'token', '1', lease => '5 min') \gset
SELECT idempotency.fail('once_batch', 'token', '1', token => :token);
UPDATE idempotency.idempotency_keys SET token = token + (1::bigint << 40) WHERE scope = 'once_batch' AND operation = 'token';
SELECT * FROM idempotency.once_batch('once_batch', 'token', ARRAY['0', '1']);
SELECT key, status, token > :token + (1::bigint << 40) AS larger FROM idempotency.idempotency_keys WHERE scope = 'once_batch' AND operation = 'token' ORDER BY key;
