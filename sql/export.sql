-- export_scopes() takes keys out of one database, import_key() puts them into
-- another as they were: with their tokens, leases and attempts. Repeated, or done
-- again later over what was left, it changes nothing that is further on. What was
-- decided in both is refused. t/045_homes.pl moves keys under load.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
\set SHOW_CONTEXT never

CREATE TEMP TABLE exported (k idempotency.idempotency_keys);
CREATE FUNCTION pg_temp.refused(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	detail text;
	hint text;
BEGIN
	EXECUTE command;
	RETURN 'done';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN concat_ws(' | ', SQLSTATE, SQLERRM, nullif(detail, ''), CASE WHEN hint = '' THEN 'NO HINT' END);
END $$;

-- One key of each kind, with everything that a row can hold.
BEGIN;
SELECT outcome FROM idempotency.claim('export a', 'op', 'done', request => '{"a": 1}', note => E'tab\there');
SELECT idempotency.complete('export a', 'op', 'done', 201, E'{ "a":1.10,\n "a":"\\." }', '[["X", "a"], ["X", "b"]]') > now();
SELECT outcome FROM idempotency.claim('export a', 'op', 'bytes');
SELECT idempotency.complete('export a', 'op', 'bytes', 200, response_bytes => '\x00ff275c0a') > now();
COMMIT;
SELECT idempotency.once('export a', 'event', 'once');
SELECT outcome FROM idempotency.claim('export a', 'op', 'running', lease => '1 hour', claim_id => '6f1ed002-ab55-4e8a-a3a6-0f0b7f6e2f3d', state => '{"n": 1}');
SELECT idempotency.checkpoint('export a', 'op', 'running', 'half way', token => (SELECT token FROM idempotency.lookup('export a', 'op', 'running'))) > now();
SELECT outcome FROM idempotency.claim('export a', 'op', 'abandoned', lease => '1 microsecond');
SELECT outcome FROM idempotency.claim('export a', 'op', 'held', lease => '1 hour');
SELECT idempotency.hold('export a', 'op', 'held', 'who knows', (SELECT token FROM idempotency.lookup('export a', 'op', 'held'))) > 0;
SELECT idempotency.record_failure('export a', 'op', 'failed', 'no money', '1 hour');
SELECT idempotency.once('export a', 'event', 'redacted'), idempotency.redact('export a', 'event', 'redacted');
SELECT idempotency.once('export a', 'event', 'expired', ttl => '1 microsecond');
SELECT count(*) FILTER (WHERE first) FROM idempotency.once_batch('export b', 'event', (SELECT array_agg('k' || i) FROM generate_series(1, 2500) AS i));
SELECT idempotency.once('export c', 'event', 'another');

-- By a list: what has expired stays. Twice named is once exported.
INSERT INTO exported SELECT k FROM idempotency.export_scopes(ARRAY['export b', 'export a', 'export b', 'export none']) AS k;
SELECT (k).scope, count(*) FROM exported GROUP BY 1 ORDER BY 1;
SELECT (k).operation, (k).key FROM exported WHERE (k).scope = 'export a' ORDER BY 1, 2;
-- Every column is there.
SELECT count(*) FROM exported AS e JOIN idempotency.idempotency_keys AS stored ON stored::text = e.k::text;
-- By the range of hashes. Both bounds belong to it.
SELECT scope, count(*) FROM idempotency.export_scopes(minimum => hashtext('export c'), maximum => hashtext('export c')) GROUP BY 1;
SELECT count(*) FILTER (WHERE scope = 'export c') AS c FROM idempotency.export_scopes(minimum => hashtext('export c') + 1, maximum => 2147483647);
SELECT count(*) FILTER (WHERE scope = 'export c') AS c FROM idempotency.export_scopes(minimum => -2147483648, maximum => hashtext('export c') - 1);
SELECT count(DISTINCT scope) FILTER (WHERE scope LIKE 'export _') AS scopes, count(*) FILTER (WHERE scope = 'export b') AS b FROM idempotency.export_scopes(minimum => -2147483648, maximum => 2147483647);
SELECT count(*) FROM idempotency.export_scopes('{}'::text[]);

-- Arguments.
SELECT pg_temp.refused(command) FROM (VALUES
	('SELECT idempotency.export_scopes()'),
	('SELECT idempotency.export_scopes(ARRAY[''a''], 1, 2)'),
	('SELECT idempotency.export_scopes(minimum => 1)'),
	('SELECT idempotency.export_scopes(ARRAY[''a''], maximum => 1)'),
	('SELECT idempotency.export_scopes(minimum => 2, maximum => 1)'),
	('SELECT idempotency.export_scopes(ARRAY[NULL]::text[])'),
	('SELECT idempotency.export_scopes(ARRAY[''''])'),
	('SELECT idempotency.forget_exported(ARRAY[''export a''])'),
	('SELECT idempotency.import_key(NULL)')) AS c(command);
BEGIN READ ONLY;
SELECT pg_temp.refused('SELECT idempotency.export_scopes(ARRAY[''a''])');
SELECT pg_temp.refused('SELECT idempotency.import_key(k) FROM exported');
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT pg_temp.refused('SELECT idempotency.export_scopes(ARRAY[''a''])');
COMMIT;
BEGIN;
SELECT outcome FROM idempotency.claim('export c', 'op', 'open');
SELECT pg_temp.refused('SELECT idempotency.export_scopes(ARRAY[''a''])');
ROLLBACK;

-- Until the transaction ends nobody else can write a key.
BEGIN;
SELECT count(*) > 0 FROM idempotency.export_scopes(ARRAY['export c']);
SELECT mode FROM pg_locks WHERE relation = 'idempotency.idempotency_keys'::regclass AND mode = 'ShareLock' AND pid = pg_backend_pid();
COMMIT;

-- Here all of it is known already.
SELECT idempotency.import_key(k) AS imported, count(*) FROM exported GROUP BY 1;

-- Elsewhere it is new, and comes as it was. (This database plays the other one, too.)
CREATE TEMP TABLE before AS SELECT k::text AS k FROM idempotency.idempotency_keys AS k WHERE scope LIKE 'export _' AND key <> 'expired';
SELECT count(idempotency.forget_scope(scope, force => true)) FROM (VALUES ('export a'), ('export b')) AS s(scope);
SELECT idempotency.import_key(k) AS imported, count(*) FROM exported GROUP BY 1;
(SELECT k FROM before EXCEPT SELECT k::text FROM idempotency.idempotency_keys AS k)
UNION ALL (SELECT k::text FROM idempotency.idempotency_keys AS k WHERE scope LIKE 'export _' EXCEPT SELECT k FROM before);
-- Again changes nothing.
SELECT idempotency.import_key(k) AS imported, count(*) FROM exported GROUP BY 1;
(SELECT k FROM before EXCEPT SELECT k::text FROM idempotency.idempotency_keys AS k);

-- Owners go on with their tokens, repeats get their answers, nobody gets what is held.
SELECT outcome, response_body FROM idempotency.claim('export a', 'op', 'done', request => '{"a": 1.0}');
SELECT outcome FROM idempotency.claim('export a', 'op', 'done', request => '{"a": 2}');
SELECT idempotency.once('export a', 'event', 'once'), idempotency.once('export b', 'event', 'k77');
SELECT outcome, rival FROM idempotency.claim('export a', 'op', 'running');
SELECT outcome FROM idempotency.claim('export a', 'op', 'running', lease => '1 hour', claim_id => '6f1ed002-ab55-4e8a-a3a6-0f0b7f6e2f3d');
SELECT outcome FROM idempotency.claim('export a', 'op', 'held');
SELECT outcome, rival FROM idempotency.claim('export a', 'op', 'failed');
SELECT outcome, taken_over, attempt FROM idempotency.claim('export a', 'op', 'abandoned', lease => '1 hour');
SELECT idempotency.complete('export a', 'op', 'running', 200, 'at last', token => (k).token) > now() FROM exported WHERE (k).key = 'running';
-- What was done since is further on than the export.
SELECT idempotency.import_key(k) AS imported, count(*) FROM exported GROUP BY 1;
SELECT response_body FROM idempotency.replay('export a', 'op', 'running');
SELECT attempt FROM idempotency.lookup('export a', 'op', 'abandoned');
-- A token that is given from here on is larger than all that have come.
SELECT idempotency.forget('export a', 'op', 'abandoned', force => true);
SELECT c.token > (e.k).token FROM exported AS e, idempotency.claim('export a', 'op', 'abandoned', lease => '1 hour') AS c WHERE (e.k).key = 'abandoned';

-- A later export over what an earlier one has left.
CREATE TEMP TABLE later (k idempotency.idempotency_keys);
INSERT INTO later SELECT k FROM idempotency.export_scopes(ARRAY['export a']) AS k;
SELECT idempotency.forget_scope('export a', force => true) > 0;
SELECT idempotency.import_key(k) FROM (SELECT k FROM exported WHERE (k).scope = 'export a' AND (k).key = 'running' OFFSET 0) AS r;
SELECT status FROM idempotency.lookup('export a', 'op', 'running');
SELECT idempotency.import_key(k) FROM (SELECT k FROM later WHERE (k).key = 'running' OFFSET 0) AS r;
SELECT status FROM idempotency.lookup('export a', 'op', 'running');
SELECT response_body FROM idempotency.replay('export a', 'op', 'running');

-- One that has expired on the way counts as absent, and stays away.
SELECT idempotency.import_key(jsonb_populate_record(k, jsonb_build_object('key', 'late', 'expires_at', now() - interval '1 s', 'locked_until', NULL)))
FROM later WHERE (k).key = 'running';
SELECT count(*) AS late FROM idempotency.idempotency_keys WHERE scope LIKE 'export%' AND key = 'late';

-- A row with something changed.
CREATE FUNCTION pg_temp.changed(key text, change jsonb) RETURNS text LANGUAGE sql AS $$
	SELECT pg_temp.refused(format('SELECT idempotency.import_key(%L::idempotency.idempotency_keys)',
		(SELECT jsonb_populate_record(k, change)::text FROM exported WHERE (k).scope = 'export a' AND (k).key = $1)))
$$;
-- What was completed in both, or is in use here by a claim that knows of nothing.
SELECT count(idempotency.import_key(k)) FROM (SELECT k FROM exported WHERE (k).scope = 'export a' OFFSET 0) AS r;
SELECT pg_temp.changed('done', '{"response_body": "other"}');
SELECT pg_temp.changed('done', '{"response_status": 500}');
SELECT pg_temp.changed('done', '{"response_headers": {}}');
SELECT pg_temp.changed('done', '{"completed_at": "2020-01-01"}');
SELECT pg_temp.changed('done', '{"created_at": "2020-01-01"}');
SELECT pg_temp.changed('held', '{"created_at": "2020-01-01"}');
SELECT idempotency.forget('export a', 'op', 'done');
BEGIN;
SELECT outcome FROM idempotency.claim('export a', 'op', 'done');
SELECT pg_temp.changed('done', '{}');
ROLLBACK;
SELECT outcome FROM idempotency.claim('export a', 'op', 'done', lease => '1 hour');
SELECT pg_temp.changed('done', '{}');
-- What was removed of a response does not come back, and goes here, too.
SELECT pg_temp.changed('redacted', '{"redacted_at": null, "response_body": "back"}');
SELECT (SELECT redacted_at IS NOT NULL FROM idempotency.lookup('export a', 'event', 'redacted'));
SELECT pg_temp.changed('bytes', '{"redacted_at": "2021-01-01", "response_bytes": null}');
SELECT redacted_at IS NOT NULL, response_bytes FROM idempotency.lookup('export a', 'op', 'bytes');
-- A token that is here already, of a life that is over, is outdated.
SELECT idempotency.forget_scope('export a', force => true) > 0;
SELECT outcome FROM idempotency.claim('export a', 'op', 'running', lease => '1 microsecond', ttl => '1 microsecond');
SELECT pg_temp.changed('running', '{}');
SELECT outcome FROM idempotency.claim('export a', 'op', 'done', lease => '1 microsecond', ttl => '1 microsecond') \gset
SELECT token AS here FROM idempotency.idempotency_keys WHERE scope = 'export a' AND key = 'done' \gset
SELECT pg_temp.changed('done', '{}');
SELECT token = :here FROM idempotency.lookup('export a', 'op', 'done');

-- No row of this library's.
SELECT change, pg_temp.changed('running', change) FROM (VALUES
	('{"scope": null}'::jsonb), ('{"operation": ""}'), ('{"status": "done"}'), ('{"status": null}'), ('{"created_at": null}'), ('{"expires_at": "infinity"}'),
	('{"created_at": "-infinity"}'), ('{"locked_until": null}'), ('{"locked_until": "infinity"}'), ('{"attempt": null}'), ('{"attempt": 0}'), ('{"token": null}'), ('{"token": 0}'),
	('{"status": "completed"}'), ('{"fingerprint": "\\x00"}'), ('{"response_status": -1}'), ('{"response_headers": 7}'),
	('{"response_body": "a", "response_bytes": "\\x00"}')) AS c(change);
SELECT pg_temp.changed('running', jsonb_build_object('key', repeat('x', 1000)));
SELECT pg_temp.changed('running', jsonb_build_object('token', 9007199254740991));

-- Who may: operators, for scopes that they are bound to.
SET client_min_messages = warning;
DROP ROLE IF EXISTS regress_export;
RESET client_min_messages;
CREATE ROLE regress_export;
GRANT ALL ON exported TO regress_export;
SELECT idempotency.grant_usage('regress_export');
SET ROLE regress_export;
SELECT pg_temp.refused('SELECT idempotency.export_scopes(ARRAY[''export a''])');
RESET ROLE;
SELECT idempotency.grant_operator('regress_export'), idempotency.bind_role('regress_export', 'export b');
SET ROLE regress_export;
SELECT pg_temp.refused('SELECT idempotency.export_scopes(ARRAY[''export a''])');
SELECT pg_temp.refused('SELECT idempotency.export_scopes(minimum => -2147483648, maximum => 2147483647)');
SELECT pg_temp.refused('SELECT idempotency.import_key(k) FROM exported');
SELECT count(*) FROM idempotency.export_scopes(ARRAY['export b']);
SELECT count(idempotency.import_key(k)) FROM (SELECT k FROM exported WHERE (k).scope = 'export b' OFFSET 0) AS r;
RESET ROLE;
SELECT idempotency.unbind_role('regress_export'), idempotency.revoke_operator('regress_export'), idempotency.revoke_usage('regress_export');
DROP OWNED BY regress_export;
DROP ROLE regress_export;
SELECT count(idempotency.forget_scope(scope, force => true)) FROM (VALUES ('export a'), ('export b'), ('export c')) AS s(scope);
