-- The extension as an object: what it brings is described and complete, it can
-- be dropped and created again, and a connection lives through that.
SET client_min_messages = warning;
DROP DATABASE IF EXISTS regress_idempotency_extension;
DROP ROLE IF EXISTS regress_squatter;
RESET client_min_messages;
\set SHOW_CONTEXT never
SELECT current_database() AS home \gset
-- In a database of its own, since it drops the extension.
CREATE DATABASE regress_idempotency_extension;
\c regress_idempotency_extension
CREATE EXTENSION idempotency;

-- What it brings, and whether each of it says what it is for. From 17 on, types
-- that come with a table or another type are members, too.
CREATE TEMP VIEW member AS
	SELECT d.classid, d.objid, pg_describe_object(d.classid, d.objid, 0) AS object FROM pg_depend d
	WHERE refclassid = 'pg_extension'::regclass AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'idempotency') AND deptype = 'e'
	AND NOT EXISTS (SELECT FROM pg_depend i WHERE (i.classid, i.objid) = (d.classid, d.objid) AND i.deptype = 'i');
SELECT count(*) > 30 AS many FROM member;
SELECT object AS without_comment FROM member WHERE obj_description(objid, classid::regclass::name) IS NULL ORDER BY 1;
SELECT c.oid::regclass || '.' || attname AS without_comment FROM pg_class c JOIN pg_attribute a ON attrelid = c.oid AND attnum > 0 AND NOT attisdropped
WHERE relnamespace = 'idempotency'::regnamespace AND relkind IN ('r', 'v', 'm', 'p', 'c') AND col_description(c.oid, attnum) IS NULL ORDER BY 1;
SELECT conrelid::regclass || ': ' || conname AS without_comment FROM pg_constraint WHERE connamespace = 'idempotency'::regnamespace AND contype <> 'n' AND obj_description(oid, 'pg_constraint') IS NULL ORDER BY 1;
SELECT tgrelid::regclass || ': ' || tgname AS without_comment FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid WHERE relnamespace = 'idempotency'::regnamespace AND NOT tgisinternal AND obj_description(t.oid, 'pg_trigger') IS NULL ORDER BY 1;
SELECT i.indexrelid::regclass AS without_comment FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE relnamespace = 'idempotency'::regnamespace AND obj_description(i.indexrelid, 'pg_class') IS NULL
	AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid) ORDER BY 1;

-- No overloads; no result is an interval, an enum or void; arguments and results
-- are the server's own types or the extension's.
SELECT proname AS overloaded FROM pg_proc WHERE pronamespace = 'idempotency'::regnamespace GROUP BY proname HAVING count(*) > 1;
SELECT p.oid::regprocedure AS hard_to_read FROM pg_proc p
WHERE pronamespace = 'idempotency'::regnamespace AND prokind = 'f' AND EXISTS (SELECT FROM unnest(coalesce(proallargtypes, '{}') || prorettype) WITH ORDINALITY u (type, no), pg_type t
	WHERE t.oid = u.type AND (t.typtype = 'e' OR t.oid IN ('interval'::regtype, 'void'::regtype)) AND (u.no > cardinality(coalesce(proallargtypes, '{}')) OR proargmodes[u.no] IN ('o', 't', 'b')));
SELECT attrelid::regclass, attname AS hard_to_read FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid JOIN pg_type t ON t.oid = atttypid
WHERE relnamespace = 'idempotency'::regnamespace AND relkind IN ('c', 'v') AND attnum > 0 AND (t.typtype = 'e' OR t.oid = 'interval'::regtype);
-- Volatility and parallel safety of each: what reads what others commit is
-- volatile, what looks through the statement's eyes is stable.
SELECT proname, provolatile, proparallel, proisstrict AS strict, proretset AS set, prorows FROM pg_proc WHERE pronamespace = 'idempotency'::regnamespace AND prokind = 'f'
ORDER BY proname COLLATE "C";
-- The identity comes first wherever there is one, and under these names.
SELECT proname FROM pg_proc WHERE pronamespace = 'idempotency'::regnamespace AND 'key' = ANY (proargnames[1:pronargs]) AND proargnames[1:3] <> '{scope,operation,key}' ORDER BY 1;
-- The table.
SELECT attname, format_type(atttypid, atttypmod) AS type, attnotnull, nullif(attcollation::regcollation::text, '-') AS collation, attidentity, atthasdef FROM pg_attribute
WHERE attrelid = 'idempotency.idempotency_keys'::regclass AND attnum > 0 ORDER BY attnum;
SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'idempotency.idempotency_keys'::regclass AND contype = 'p';
SELECT relpersistence, relreplident, relrowsecurity FROM pg_class WHERE oid = 'idempotency.idempotency_keys'::regclass;
-- Its rows and the policies travel with a dump; tokens need not (src/keys.c).
SELECT c::regclass FROM pg_extension, unnest(extconfig) c WHERE extname = 'idempotency' AND c::regclass::text ~ 'idempotency_keys|token_seq|policies' ORDER BY c::regclass::text;

-- Dropped and created again on one connection, between two calls, and in the
-- middle of a transaction that has claimed.
SELECT outcome FROM idempotency.claim('extension', 'key', 'first', lease => '1 hour');
BEGIN;
SELECT outcome FROM idempotency.claim('extension', 'key', 'own');
SELECT idempotency.complete('extension', 'key', 'own', 200) > now() AS done;
COMMIT;
DROP EXTENSION idempotency;
SELECT outcome FROM idempotency.claim('extension', 'key', 'first', lease => '1 hour');
CREATE EXTENSION idempotency;
SELECT outcome, attempt, token > 0 AS token FROM idempotency.claim('extension', 'key', 'first', lease => '1 hour');
BEGIN;
SELECT outcome, attempt FROM idempotency.claim('extension', 'key', 'own');
SELECT idempotency.complete('extension', 'key', 'own', 200, 'in the second') > now() AS done;
COMMIT;
SELECT response_body FROM idempotency.replay('extension', 'key', 'own');
SELECT idempotency.cleanup(), idempotency.forget('extension', 'key', 'own'), idempotency.forget_scope('extension', true);
-- A claim without a lease that is open when its extension goes.
BEGIN;
SELECT outcome FROM idempotency.claim('extension', 'key', 'orphan');
DROP EXTENSION idempotency;
COMMIT;
\echo :SQLSTATE
SELECT outcome FROM idempotency.claim('extension', 'key', 'orphan', lease => '1 hour');
-- One with a lease, and one that was completed: nothing is left open.
BEGIN;
SELECT outcome FROM idempotency.claim('extension', 'key', 'leased', lease => '1 hour');
SELECT outcome FROM idempotency.claim('extension', 'key', 'own');
SELECT idempotency.complete('extension', 'key', 'own', 200) > now() AS done;
DROP EXTENSION idempotency;
COMMIT;
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 18756 AND pid = pg_backend_pid();
-- Created, used, and undone in one transaction; then created for good.
BEGIN;
CREATE EXTENSION idempotency;
SELECT outcome, token > 0 AS token FROM idempotency.claim('extension', 'key', 'undone', lease => '1 hour');
ROLLBACK;
SELECT to_regnamespace('idempotency');
BEGIN;
CREATE EXTENSION idempotency;
SELECT outcome, token > 0 AS token FROM idempotency.claim('extension', 'key', 'kept', lease => '1 hour');
COMMIT;
SELECT status FROM idempotency.lookup('extension', 'key', 'kept');
-- Dropped and created within a transaction that goes on with it.
BEGIN;
SELECT outcome FROM idempotency.claim('extension', 'key', 'again', lease => '1 hour');
DROP EXTENSION idempotency;
CREATE EXTENSION idempotency;
SELECT outcome FROM idempotency.claim('extension', 'key', 'another', lease => '1 hour');
SELECT idempotency.complete('extension', 'key', 'another', 200) > now() AS done;
SAVEPOINT s;
-- What it has claimed in the extension that is gone is gone.
SELECT idempotency.complete('extension', 'key', 'again', 200);
\echo :SQLSTATE
ROLLBACK TO s;
COMMIT;
SELECT status FROM idempotency.lookup('extension', 'key', 'another');

-- Everything that a pooler does to a connection between two clients.
SELECT outcome FROM idempotency.claim('extension', 'pooled', 'before', lease => '1 hour');
DISCARD ALL;
SELECT outcome FROM idempotency.claim('extension', 'pooled', 'before', lease => '1 hour');
BEGIN;
SELECT outcome FROM idempotency.claim('extension', 'pooled', 'after');
SELECT idempotency.complete('extension', 'pooled', 'after', 200) > now() AS done;
COMMIT;
DISCARD PLANS;
SELECT outcome FROM idempotency.claim('extension', 'pooled', 'after');

-- A changed table is noticed, and not written to wrongly.
BEGIN;
ALTER TABLE idempotency.idempotency_keys RENAME TO elsewhere;
SELECT outcome FROM idempotency.claim('extension', 'changed', 'k', lease => '1 hour');
\echo :SQLSTATE
ROLLBACK;
BEGIN;
ALTER TABLE idempotency.idempotency_keys RENAME COLUMN note TO remark;
SELECT outcome FROM idempotency.claim('extension', 'changed', 'k', lease => '1 hour');
\echo :SQLSTATE
ROLLBACK;
BEGIN;
ALTER TABLE idempotency.idempotency_keys SET UNLOGGED;
SELECT outcome FROM idempotency.claim('extension', 'changed', 'k', lease => '1 hour');
\echo :SQLSTATE
ROLLBACK;
BEGIN;
ALTER SEQUENCE idempotency.token_seq RENAME TO elsewhere;
SELECT outcome FROM idempotency.claim('extension', 'changed', 'k', lease => '1 hour');
\echo :SQLSTATE
ROLLBACK;
-- One that looks like it, and is not the extension's.
BEGIN;
ALTER TABLE idempotency.idempotency_keys RENAME TO elsewhere;
CREATE TABLE idempotency.idempotency_keys (LIKE idempotency.elsewhere INCLUDING ALL);
SELECT outcome FROM idempotency.claim('extension', 'changed', 'k', lease => '1 hour');
\echo :SQLSTATE
ROLLBACK;
-- What does no harm does none: a column, an index, fresh statistics, a rewrite.
ALTER TABLE idempotency.idempotency_keys ADD COLUMN of_our_own text DEFAULT 'x';
CREATE INDEX ON idempotency.idempotency_keys (created_at);
SELECT outcome, token > 0 AS token FROM idempotency.claim('extension', 'changed', 'k', lease => '1 hour');
VACUUM FULL idempotency.idempotency_keys;
REINDEX TABLE idempotency.idempotency_keys;
ANALYZE idempotency.idempotency_keys;
SELECT outcome FROM idempotency.claim('extension', 'changed', 'k', lease => '1 hour');
SELECT outcome, token > 0 AS token FROM idempotency.claim('extension', 'changed', 'k2', lease => '1 hour');
TRUNCATE idempotency.idempotency_keys;
SELECT outcome FROM idempotency.claim('extension', 'changed', 'k', lease => '1 hour');
DROP EXTENSION idempotency;

-- A schema that somebody else made beforehand is not adopted.
CREATE ROLE regress_squatter;
GRANT CREATE ON DATABASE regress_idempotency_extension TO regress_squatter;
SET ROLE regress_squatter;
CREATE SCHEMA idempotency;
CREATE FUNCTION idempotency.claim(text, text, text) RETURNS text LANGUAGE sql AS $$ SELECT 'mine' $$;
RESET ROLE;
CREATE EXTENSION idempotency;
\echo :SQLSTATE
CREATE EXTENSION idempotency SCHEMA public;
CREATE EXTENSION idempotency SCHEMA idempotency;
SELECT count(*) FROM pg_extension WHERE extname = 'idempotency';
DROP SCHEMA idempotency CASCADE;
-- Nor can somebody who may create only schemas create it.
SET ROLE regress_squatter;
CREATE EXTENSION idempotency;
\echo :SQLSTATE
RESET ROLE;
CREATE EXTENSION idempotency;
ALTER EXTENSION idempotency SET SCHEMA public;
\echo :SQLSTATE
-- Autovacuum's options come with it.
SELECT unnest(reloptions) FROM pg_class WHERE oid = 'idempotency.idempotency_keys'::regclass ORDER BY 1;
-- The schema goes and comes with it, so its owner is who created it.
SELECT nspowner::regrole = current_user::regrole AS mine FROM pg_namespace WHERE nspname = 'idempotency';

-- A trigger's function is none to be called.
SELECT idempotency.config_changed();
\echo :SQLSTATE
-- A row of the type of a table that is no longer the one in use.
BEGIN;
ALTER TABLE idempotency.idempotency_keys RENAME TO replaced;
CREATE TABLE idempotency.idempotency_keys (LIKE idempotency.replaced INCLUDING ALL);
ALTER EXTENSION idempotency ADD TABLE idempotency.idempotency_keys;
SELECT idempotency.import_key(jsonb_populate_record(NULL::idempotency.replaced, '{"scope": "extension", "operation": "op", "key": "k"}'));
\echo :SQLSTATE
ROLLBACK;
-- A result type that has columns of which the library does not know. Last, since they
-- stay in its description when they are dropped.
ALTER TYPE idempotency.claim_result ADD ATTRIBUTE more text;
SELECT outcome FROM idempotency.claim('extension', 'op', 'k');
\echo :SQLSTATE

\c :home
DROP DATABASE regress_idempotency_extension;
DROP ROLE regress_squatter;
