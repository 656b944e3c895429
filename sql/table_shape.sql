-- Keys are kept in an ordinary table with the primary key that it was made with.
-- On anything else every call is refused before it looks for a key, health() says
-- what is wrong, and once it is put back everything goes on as before.
-- Without that check once_batch() tries a key again and again that a wrong index
-- does not let it find.
SET statement_timeout = '1min';
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
-- What other tests left would not fit each key that is put in place below.
TRUNCATE idempotency.idempotency_keys;
SELECT idempotency.import_completed('table_shape', 'op', 'known', response_body => 'first');

-- Each call by itself, undone; those that answered alike in one line.
CREATE FUNCTION pg_temp.answer(call text) RETURNS text LANGUAGE plpgsql AS $$
	DECLARE detail text; hint text;
	BEGIN
		EXECUTE call;
		RAISE EXCEPTION USING ERRCODE = 'P0999';
	EXCEPTION WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
		RETURN CASE sqlstate WHEN 'P0999' THEN 'works' ELSE concat_ws(E'\n', sqlstate, sqlerrm, nullif(detail, ''), nullif(hint, '')) END;
	END $$;
CREATE FUNCTION pg_temp.look() RETURNS TABLE (calls text, answer text) LANGUAGE sql AS $$
	SELECT string_agg(name, ' ' ORDER BY name), a FROM (VALUES
		('claim', $c$ SELECT idempotency.claim('table_shape', 'op', 'known') $c$),
		('claim_lease', $c$ SELECT idempotency.claim('table_shape', 'op', 'new', lease => '1 min') $c$),
		('claim_abandoned', $c$ SELECT idempotency.claim_abandoned('op') $c$),
		('cleanup', $c$ SELECT idempotency.cleanup() $c$),
		('forget', $c$ SELECT idempotency.forget('table_shape', 'op', 'known') $c$),
		('forget_scope', $c$ SELECT idempotency.forget_scope('table_shape') $c$),
		('import_completed', $c$ SELECT idempotency.import_completed('table_shape', 'op', 'new') $c$),
		('lookup', $c$ SELECT idempotency.lookup('table_shape', 'op', 'known') $c$),
		('once', $c$ SELECT idempotency.once('table_shape', 'op', 'new') $c$),
		('once_batch', $c$ SELECT idempotency.once_batch('table_shape', 'op', ARRAY['a', 'known']) $c$),
		('redact', $c$ SELECT idempotency.redact('table_shape', 'op', 'known') $c$),
		('redact_scope', $c$ SELECT idempotency.redact_scope('table_shape') $c$),
		('replay', $c$ SELECT idempotency.replay('table_shape', 'op', 'known') $c$),
		('run', $c$ SELECT idempotency.run('table_shape', 'op', 'new', 'SELECT 1') $c$))
		AS c(name, call), LATERAL pg_temp.answer(call) AS a GROUP BY a
	UNION ALL
	SELECT check_name, concat_ws(E'\n', status, detail) FROM idempotency.health() WHERE check_name = 'table' $$;
\pset format unaligned
\pset tuples_only on
\set look 'SELECT * FROM pg_temp.look()'
:look;

-- The primary key: other columns, more of them, fewer, another order, none.
BEGIN;
ALTER TABLE idempotency.idempotency_keys DROP CONSTRAINT idempotency_keys_pkey;
:look;
ALTER TABLE idempotency.idempotency_keys ADD COLUMN id bigserial PRIMARY KEY;
:look;
ALTER TABLE idempotency.idempotency_keys DROP COLUMN id, ADD PRIMARY KEY (scope, operation, key, created_at);
:look;
ALTER TABLE idempotency.idempotency_keys DROP CONSTRAINT idempotency_keys_pkey, ADD PRIMARY KEY (scope, operation, key) INCLUDE (status);
:look;
ALTER TABLE idempotency.idempotency_keys DROP CONSTRAINT idempotency_keys_pkey, ADD PRIMARY KEY (scope, key);
:look;
ALTER TABLE idempotency.idempotency_keys DROP CONSTRAINT idempotency_keys_pkey, ADD PRIMARY KEY (key, operation, scope);
:look;
-- Beside the wrong one a right one does not help: it is not the judge.
ALTER TABLE idempotency.idempotency_keys ADD UNIQUE (scope, operation, key);
:look;
-- One that judges at the end of the transaction.
ALTER TABLE idempotency.idempotency_keys DROP CONSTRAINT idempotency_keys_pkey, ADD PRIMARY KEY (scope, operation, key) DEFERRABLE;
:look;
-- One that does not have every row.
ALTER TABLE idempotency.idempotency_keys DROP CONSTRAINT idempotency_keys_pkey, ADD PRIMARY KEY (scope, operation, key);
UPDATE pg_catalog.pg_index SET indisvalid = false WHERE indexrelid = 'idempotency.idempotency_keys_pkey'::regclass;
ALTER TABLE idempotency.idempotency_keys SET (fillfactor = 99);
:look;
-- As the hints say, under any name.
ALTER TABLE idempotency.idempotency_keys DROP CONSTRAINT idempotency_keys_pkey;
ALTER TABLE idempotency.idempotency_keys ADD CONSTRAINT renamed PRIMARY KEY (scope, operation, key);
:look;
ROLLBACK;

-- Another collation is another order.
BEGIN;
ALTER EXTENSION idempotency DROP VIEW idempotency.abandoned;
ALTER EXTENSION idempotency DROP VIEW idempotency.keys_by_operation;
ALTER EXTENSION idempotency DROP VIEW idempotency.keys_by_scope;
DROP VIEW idempotency.abandoned, idempotency.keys_by_operation, idempotency.keys_by_scope;
ALTER TABLE idempotency.idempotency_keys ALTER COLUMN operation TYPE text COLLATE "POSIX";
:look;
ALTER TABLE idempotency.idempotency_keys ALTER COLUMN operation TYPE text COLLATE "C";
:look;
ROLLBACK;

-- What is not an ordinary table, put in the place of ours.
CREATE FOREIGN DATA WRAPPER table_shape;
CREATE SERVER table_shape FOREIGN DATA WRAPPER table_shape;
BEGIN;
ALTER TABLE idempotency.idempotency_keys RENAME TO ours;
:look;
SAVEPOINT renamed;
CREATE TABLE idempotency.idempotency_keys (LIKE idempotency.ours INCLUDING ALL) PARTITION BY LIST (scope);
ALTER EXTENSION idempotency ADD TABLE idempotency.idempotency_keys;
:look;
CREATE TABLE idempotency.rest PARTITION OF idempotency.idempotency_keys DEFAULT;
:look;
ROLLBACK TO renamed;
CREATE VIEW idempotency.idempotency_keys AS TABLE idempotency.ours;
ALTER EXTENSION idempotency ADD VIEW idempotency.idempotency_keys;
:look;
ROLLBACK TO renamed;
CREATE MATERIALIZED VIEW idempotency.idempotency_keys AS TABLE idempotency.ours;
ALTER EXTENSION idempotency ADD MATERIALIZED VIEW idempotency.idempotency_keys;
:look;
ROLLBACK TO renamed;
CREATE FOREIGN TABLE idempotency.idempotency_keys (scope text) SERVER table_shape;
ALTER EXTENSION idempotency ADD FOREIGN TABLE idempotency.idempotency_keys;
:look;
ROLLBACK TO renamed;
CREATE SEQUENCE idempotency.idempotency_keys;
ALTER EXTENSION idempotency ADD SEQUENCE idempotency.idempotency_keys;
:look;
ROLLBACK TO renamed;
CREATE TABLE idempotency.idempotency_keys (LIKE idempotency.ours INCLUDING ALL);
:look;
ROLLBACK TO renamed;
ALTER TABLE idempotency.ours RENAME TO idempotency_keys;
:look;
ROLLBACK;
DROP SERVER table_shape;
DROP FOREIGN DATA WRAPPER table_shape;

-- Whose rows are also another table's, or that has other tables' rows too.
BEGIN;
CREATE TABLE whole (LIKE idempotency.idempotency_keys) PARTITION BY LIST (scope);
ALTER TABLE whole ATTACH PARTITION idempotency.idempotency_keys DEFAULT;
:look;
ALTER TABLE whole DETACH PARTITION idempotency.idempotency_keys;
:look;
CREATE TABLE parent (scope text COLLATE "C" NOT NULL);
ALTER TABLE idempotency.idempotency_keys INHERIT parent;
:look;
ALTER TABLE idempotency.idempotency_keys NO INHERIT parent;
:look;
CREATE TABLE child () INHERITS (idempotency.idempotency_keys);
:look;
ALTER TABLE child NO INHERIT idempotency.idempotency_keys;
-- Which leaves its mark.
SELECT relhassubclass FROM pg_class WHERE oid = 'idempotency.idempotency_keys'::regclass;
:look;
ROLLBACK;

-- Kept in another way.
CREATE ACCESS METHOD other TYPE TABLE HANDLER heap_tableam_handler;
BEGIN;
ALTER TABLE idempotency.idempotency_keys SET ACCESS METHOD other;
:look;
ALTER TABLE idempotency.idempotency_keys SET ACCESS METHOD heap;
:look;
ALTER TABLE idempotency.idempotency_keys SET UNLOGGED;
:look;
ALTER TABLE idempotency.idempotency_keys SET LOGGED;
:look;
ROLLBACK;
-- The script does not take whatever is the default.
BEGIN;
DROP EXTENSION idempotency;
SET LOCAL default_table_access_method = other;
CREATE EXTENSION idempotency;
SELECT DISTINCT amname FROM pg_class c JOIN pg_am a ON a.oid = relam WHERE relnamespace = 'idempotency'::regnamespace AND relkind = 'r';
ROLLBACK;
DROP ACCESS METHOD other;

-- Committed, and seen by a session that was at work before: each call without
-- an exception handler around it.
\set VERBOSITY sqlstate
ALTER TABLE idempotency.idempotency_keys RENAME TO ours;
CREATE TABLE idempotency.idempotency_keys (LIKE idempotency.ours INCLUDING ALL) PARTITION BY LIST (scope);
ALTER EXTENSION idempotency ADD TABLE idempotency.idempotency_keys;
SELECT outcome FROM idempotency.claim('table_shape', 'op', 'known');
SELECT response_body FROM idempotency.replay('table_shape', 'op', 'known');
SELECT * FROM idempotency.once_batch('table_shape', 'op', ARRAY['known']);
CALL idempotency.maintain();
SELECT check_name, status FROM idempotency.health() WHERE check_name <> 'worker';
ALTER EXTENSION idempotency DROP TABLE idempotency.idempotency_keys;
DROP TABLE idempotency.idempotency_keys;
ALTER TABLE idempotency.ours RENAME TO idempotency_keys;
SELECT outcome, response_body FROM idempotency.claim('table_shape', 'op', 'known');
CALL idempotency.maintain();
SELECT count(*) FROM idempotency.health();
:look;
SELECT idempotency.forget_scope('table_shape');
