-- run(): claim, execute, record, in one call, with the caller's own rights.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
CREATE SCHEMA run_test;
RESET client_min_messages;
SET search_path = run_test;
CREATE TABLE ledger (who text, amount numeric);

-- One value is recorded as it is, and replayed.
SELECT outcome, response_body, completed_at IS NOT NULL AS done
FROM idempotency.run('run', 'insert', '1', $$INSERT INTO ledger SELECT a->>'who', (a->>'amount')::numeric FROM (SELECT $1 AS a) AS x RETURNING who || ' ' || amount$$, '{"who": "ann", "amount": 1.10}');
SELECT outcome, response_body, completed_at IS NOT NULL AS done
FROM idempotency.run('run', 'insert', '1', $$INSERT INTO ledger SELECT a->>'who', (a->>'amount')::numeric FROM (SELECT $1 AS a) AS x RETURNING who || ' ' || amount$$, '{"who": "ann", "amount": 1.10}');
SELECT response_body FROM idempotency.replay('run', 'insert', '1');
SELECT * FROM ledger;
-- Several columns are a JSON object, in their order; nothing else is touched.
SELECT outcome, response_body FROM idempotency.run('run', 'result', 'several', 'SELECT 1.10 AS b, ''x "y"'' AS a, NULL::int AS c, ''{"z": 1}''::json AS d');
SELECT outcome, response_body FROM idempotency.run('run', 'result', 'json', $$SELECT '{ "b":1,  "a":1.10, "a":2 }'::json$$);
SELECT outcome, response_body FROM idempotency.run('run', 'result', 'empty', $$SELECT ''::text$$);
SELECT outcome, response_body FROM idempotency.run('run', 'result', 'row', $$SELECT ROW(1, 'a')$$);
-- NULL, no row, and a command that has no rows: done, with no body.
SELECT v.key, outcome, response_body IS NULL AS no_body FROM (VALUES ('null', 'SELECT NULL::text'), ('none', 'SELECT 1 WHERE false'),
	('insert', 'INSERT INTO ledger VALUES (''bob'', 2)'), ('update', 'UPDATE ledger SET amount = 3 WHERE who = ''bob'''), ('nothing', ''),
	('ddl', 'CREATE TABLE run_test.made (a int)'), ('do', 'DO $d$ BEGIN INSERT INTO ledger VALUES (''do'', 4); END $d$')) AS v(key, command),
	idempotency.run('run', 'nobody', key, command);
SELECT outcome, response_body IS NULL AS no_body FROM idempotency.run('run', 'nobody', 'ddl', 'CREATE TABLE run_test.made (a int)');
SELECT * FROM ledger ORDER BY amount;
SELECT count(*) FROM made;
-- All rows of a command without a result, not only the first two.
SELECT outcome FROM idempotency.run('run', 'nobody', 'rows', 'INSERT INTO made SELECT generate_series(1, 10)');
SELECT outcome, response_body FROM idempotency.run('run', 'nobody', 'cte', 'WITH n AS (INSERT INTO made SELECT generate_series(1, 10) RETURNING a) SELECT count(*) FROM n');
SELECT count(*) FROM made;
CREATE PROCEDURE add(who text, INOUT total numeric) LANGUAGE plpgsql AS $$ BEGIN INSERT INTO ledger VALUES (add.who, total); SELECT sum(amount) INTO total FROM ledger; END $$;
SELECT outcome, response_body FROM idempotency.run('run', 'call', '1', 'CALL add(''cal'', 5)');
-- Several statements: all are executed, to their end, and the last one's result
-- is recorded.
SELECT outcome, response_body FROM idempotency.run('run', 'several', '1', 'INSERT INTO made SELECT generate_series(1, 10) RETURNING a; SELECT count(*) FROM made');
SELECT outcome, response_body IS NULL AS no_body FROM idempotency.run('run', 'several', '2', 'SELECT 1; DELETE FROM made');
SELECT outcome FROM idempotency.run('run', 'several', '3', 'INSERT INTO made VALUES (1); SELECT 1/0');
SELECT count(*) FROM made;
-- Args: $1, NULL if there is none; the request is compared, args are not.
SELECT outcome, response_body FROM idempotency.run('run', 'args', '1', 'SELECT $1 IS NULL');
SELECT outcome, response_body, fingerprint_checked FROM idempotency.run('run', 'args', '2', 'SELECT $1->>''a''', '{"a": "b"}', request => '{"r": 1}');
SELECT outcome, response_body, fingerprint_checked FROM idempotency.run('run', 'args', '2', 'SELECT 2', NULL, request => '{"r": 1.0}');
SELECT outcome, response_body, fingerprint_checked FROM idempotency.run('run', 'args', '2', 'SELECT 2', NULL, request => '{"r": 2}');
SELECT outcome, expires_at - created_at AS remembered FROM idempotency.run('run', 'args', '3', 'SELECT 1', ttl => '2 days');

-- Errors leave no trace and can be retried.
SELECT outcome FROM idempotency.run('run', 'error', '1', 'INSERT INTO ledger VALUES (''eve'', 1/(($1->>''by'')::int))', '{"by": 0}');
SELECT status FROM idempotency.lookup('run', 'error', '1');
SELECT outcome, attempt FROM idempotency.run('run', 'error', '1', 'INSERT INTO ledger VALUES (''eve'', 1/(($1->>''by'')::int))', '{"by": 1}');
SELECT outcome, attempt FROM idempotency.run('run', 'error', '1', 'INSERT INTO ledger VALUES (''eve'', 1/(($1->>''by'')::int))', '{"by": 1}');
-- Several rows have no meaning: an error, and nothing was inserted.
SELECT outcome FROM idempotency.run('run', 'error', 'rows', 'INSERT INTO ledger VALUES (''eve'', 6), (''eve'', 7) RETURNING amount');
SELECT outcome FROM idempotency.run('run', 'error', 'rows', 'SELECT generate_series(1, 3)');
SELECT count(*) FROM ledger WHERE who = 'eve';
-- In a savepoint, the transaction goes on and the key is free.
BEGIN;
SAVEPOINT a;
SELECT outcome FROM idempotency.run('run', 'error', '2', 'SELECT 1/0');
ROLLBACK TO a;
SELECT outcome, response_body FROM idempotency.run('run', 'error', '2', 'SELECT 1/1');
COMMIT;
DO $$
BEGIN
	PERFORM FROM idempotency.run('run', 'error', '3', 'SELECT 1/0');
EXCEPTION WHEN division_by_zero THEN
	RAISE NOTICE '% %', (SELECT outcome FROM idempotency.run('run', 'error', '3', 'SELECT 42')), (SELECT response_body FROM idempotency.replay('run', 'error', '3'));
END $$;
-- Transactions are not the command's business.
SELECT outcome FROM idempotency.run('run', 'control', '1', 'COMMIT');
SELECT outcome FROM idempotency.run('run', 'control', '1', 'SAVEPOINT a');
SELECT outcome FROM idempotency.run('run', 'control', '1', 'DO $d$ BEGIN COMMIT; END $d$');
SELECT outcome FROM idempotency.run('run', 'control', '1', 'COPY ledger TO STDOUT');
SELECT outcome FROM idempotency.run('run', 'control', '1', 'SELEKT');
SELECT status FROM idempotency.lookup('run', 'control', '1');
-- A response that is too large is no response: the whole thing is undone.
BEGIN;
SET LOCAL idempotency.max_response_size = '1kB';
SELECT outcome FROM idempotency.run('run', 'large', '1', $$INSERT INTO ledger VALUES ('lea', 8) RETURNING repeat('x', 1025)$$);
ROLLBACK;
SELECT count(*) FROM ledger WHERE who = 'lea';
SELECT outcome, length(response_body) FROM idempotency.run('run', 'large', '1', $$INSERT INTO ledger VALUES ('lea', 8) RETURNING repeat('x', 1025)$$);

-- Nested with another key; with the same one it is in progress.
SELECT outcome, response_body FROM idempotency.run('run', 'nested', 'outer', $$SELECT outcome || ' ' || response_body FROM idempotency.run('run', 'nested', 'inner', 'SELECT 1')$$);
SELECT outcome, response_body FROM idempotency.run('run', 'nested', 'inner', 'SELECT 2');
SELECT outcome, response_body FROM idempotency.run('run', 'nested', 'same', $$SELECT outcome FROM idempotency.run('run', 'nested', 'same', 'SELECT 1', wait => '1 min')$$);
-- The command may not decide about the key over our heads.
SELECT outcome FROM idempotency.run('run', 'nested', 'own', $$SELECT idempotency.complete('run', 'nested', 'own', 200, 'mine')$$);
SELECT outcome FROM idempotency.run('run', 'nested', 'own', $$SELECT idempotency.fail('run', 'nested', 'own')$$);
SELECT outcome FROM idempotency.run('run', 'nested', 'own', $$SELECT idempotency.release('run', 'nested', 'own')$$);
SELECT outcome FROM idempotency.run('run', 'nested', 'own', $$SELECT idempotency.hold('run', 'nested', 'own', 'no answer')$$);
SELECT status FROM idempotency.lookup('run', 'nested', 'own');
-- Other answers: nothing is executed.
SELECT token FROM idempotency.claim('run', 'other', 'open', lease => '1 min') \gset
SELECT outcome, retry_after_ms > 0 AS retry FROM idempotency.run('run', 'other', 'open', 'SELECT 1/0');
SELECT idempotency.hold('run', 'other', 'open', 'no answer', :token) > 0 AS held;
SELECT outcome, response_body FROM idempotency.run('run', 'other', 'open', 'SELECT 1/0');
SELECT idempotency.redact('run', 'insert', '1');
SELECT outcome FROM idempotency.run('run', 'insert', '1', 'SELECT 1/0');
-- Over a failed attempt.
SELECT token FROM idempotency.claim('run', 'other', 'failed', lease => '1 min') \gset
SELECT idempotency.fail('run', 'other', 'failed', 'no', token => :token);
SELECT outcome, attempt, last_error, response_body FROM idempotency.run('run', 'other', 'failed', 'SELECT 3');
-- Bad input.
SELECT outcome FROM idempotency.run('run', 'bad', '1', NULL);
SELECT outcome FROM idempotency.run('run', 'bad', NULL, 'SELECT 1');
SELECT outcome FROM idempotency.run('run', 'bad', '1', 'SELECT 1', ttl => '0');
SELECT outcome FROM idempotency.run('run', 'bad', '1', 'SELECT $2');
BEGIN READ ONLY;
SELECT outcome FROM idempotency.run('run', 'bad', '1', 'SELECT 1');
ROLLBACK;

-- The caller's rights, and nobody else's.
SET client_min_messages = warning;
DROP ROLE IF EXISTS regress_run_app, regress_run_definer, regress_run_other;
RESET client_min_messages;
CREATE ROLE regress_run_app;
CREATE ROLE regress_run_definer;
CREATE ROLE regress_run_other;
GRANT regress_run_other TO regress_run_app;
SELECT idempotency.grant_usage('regress_run_app'), idempotency.grant_usage('regress_run_definer');
GRANT USAGE ON SCHEMA run_test TO regress_run_app, regress_run_definer, regress_run_other;
CREATE TABLE secret (a text);
INSERT INTO secret VALUES ('seen');
GRANT SELECT ON secret TO regress_run_definer;
SET ROLE regress_run_app;
SELECT response_body FROM idempotency.run('run', 'rights', '1', 'SELECT current_user || '' '' || current_setting(''search_path'')');
SELECT outcome FROM idempotency.run('run', 'rights', '2', 'SELECT a FROM secret');
SELECT outcome FROM idempotency.run('run', 'rights', '2', 'SELECT key FROM idempotency.idempotency_keys LIMIT 1');
SELECT outcome FROM idempotency.run('run', 'rights', '2', 'DELETE FROM idempotency.idempotency_keys');
SELECT outcome FROM idempotency.run('run', 'rights', '2', $$SELECT idempotency.forget('run', 'insert', '1')$$);
-- SET ROLE in the command: as in a statement of its own.
SELECT outcome, response_body FROM idempotency.run('run', 'rights', '3', 'SELECT set_config(''role'', ''regress_run_other'', false)');
SELECT current_user;
SET ROLE regress_run_app;
SELECT outcome FROM idempotency.run('run', 'rights', '4', 'SET ROLE regress_run_other');
SELECT current_user;
RESET ROLE;
SELECT current_user = session_user AS back, l.status FROM idempotency.lookup('run', 'rights', '4') AS l;
-- From a SECURITY DEFINER function: the definer's rights, and no SET ROLE.
CREATE FUNCTION as_definer(key text, command text, OUT outcome text, OUT response_body text) LANGUAGE plpgsql SECURITY DEFINER SET search_path = run_test, pg_temp
AS $$ BEGIN SELECT r.outcome, r.response_body INTO outcome, response_body FROM idempotency.run('run', 'definer', as_definer.key, command) AS r; END $$;
ALTER FUNCTION as_definer OWNER TO regress_run_definer;
SET ROLE regress_run_app;
SELECT * FROM as_definer('1', 'SELECT current_user');
SELECT * FROM as_definer('2', 'SELECT a FROM secret');
SELECT * FROM as_definer('3', 'SET ROLE regress_run_other');
SELECT * FROM as_definer('3', 'SELECT current_setting(''search_path'')');
SELECT current_user, current_setting('search_path');
RESET ROLE;
-- A temporary object of the caller's is found as in any statement.
CREATE TEMP TABLE ledger (who text);
INSERT INTO pg_temp.ledger VALUES ('temporary');
SELECT response_body FROM idempotency.run('run', 'path', '1', 'SELECT who FROM ledger');
SET search_path = pg_catalog, run_test, pg_temp;
SELECT response_body FROM idempotency.run('run', 'path', '2', 'SELECT count(*) > 1 FROM ledger');
RESET search_path;

SET client_min_messages = warning;
DROP SCHEMA run_test CASCADE;
SELECT idempotency.forget_scope('run', true) > 20 AS forgotten;
DROP OWNED BY regress_run_app, regress_run_definer, regress_run_other;
DROP ROLE regress_run_app, regress_run_definer, regress_run_other;

-- An HTTP handler in one call: status and headers are recorded with the result.
SELECT outcome, response_status, response_headers, response_body FROM idempotency.run('run', 'http', '1', 'SELECT $1->>''a''', '{"a": "b"}', response_status => 201, response_headers => '{"Location": "/orders/1"}');
SELECT outcome, response_status, response_headers, response_body FROM idempotency.run('run', 'http', '1', 'SELECT 1/0', response_status => 500);
SELECT outcome, response_status FROM idempotency.run('run', 'http', '2', 'SELECT 1', response_status => -1);
SELECT outcome, response_status FROM idempotency.run('run', 'http', '2', 'SELECT 1', response_headers => '[1]');
SELECT outcome, fingerprint_checked FROM idempotency.run('run', 'http', '3', 'SELECT 1', fingerprint => idempotency.fingerprint_bytes('raw'));
SELECT outcome, fingerprint_checked FROM idempotency.run('run', 'http', '3', 'SELECT 1', fingerprint => idempotency.fingerprint_bytes('other'));
SELECT count(*) FROM idempotency.lookup('run', 'http', '2');
