-- A next release that exists only for t/070_upgrade.pl: what an update may well do,
-- a column and a call more.
\echo Use "ALTER EXTENSION idempotency UPDATE" to load this file. \quit

SET LOCAL search_path TO pg_catalog, pg_temp;

CREATE FUNCTION idempotency.next() RETURNS pg_catalog.int4
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'idempotency_next';
REVOKE ALL ON FUNCTION idempotency.next() FROM PUBLIC;
COMMENT ON FUNCTION idempotency.next() IS 'only in the next release';

ALTER TABLE idempotency.idempotency_keys ADD COLUMN next pg_catalog.text;
COMMENT ON COLUMN idempotency.idempotency_keys.next IS 'only in the next release';
