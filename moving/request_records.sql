-- request_records.sql - system A: request records of an API
--
-- The old table has no tenant: all is in the scope 'app'. It can hold only keys that
-- are uuids, and no headers or bytes of an answer.

\set old_table idempotency_records
-- A unique key of the old table, along which it is moved.
\set walk request_id
-- How long an old instance may be at a request that it has begun; here it records
-- only what is done.
\set lease '15 min'

-- The SQLSTATE by which an old instance learns that somebody else was first.
CREATE FUNCTION :"bridge".refusal() RETURNS text LANGUAGE sql IMMUTABLE
RETURN '40001';

-- What a row means.
CREATE FUNCTION :"bridge".request_of(o :old_table) RETURNS :"bridge".request LANGUAGE sql STABLE
RETURN CAST(ROW('app', (o).operation, (o).request_id, 'completed', (o).status_code, (o).result_payload,
                (o).created_at, (o).created_at, (o).expires_at) AS :"bridge".request);

-- The form in which two answers are compared.
CREATE FUNCTION :"bridge".comparable(status int, answer text) RETURNS text LANGUAGE sql IMMUTABLE
RETURN ROW(status, COALESCE(answer, ''))::text;

-- Which keys of the extension could be this table's.
CREATE FUNCTION :"bridge".covers(scope text, operation text, key text) RETURNS boolean LANGUAGE sql STABLE
RETURN scope = 'app' AND length(operation) <= 100
   AND key ~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$';

-- The row that has the key of one that is covered, locked; what a new instance has
-- recorded; what it has cleared.
CREATE FUNCTION :"bridge".rows_of(scope text, operation text, key text) RETURNS SETOF :old_table LANGUAGE sql VOLATILE
BEGIN ATOMIC
	SELECT o.* FROM :old_table AS o
	 WHERE o.request_id = rows_of.key::uuid FOR SHARE;
END;

CREATE FUNCTION :"bridge".write(k idempotency.idempotency_keys) RETURNS void LANGUAGE sql VOLATILE
BEGIN ATOMIC
	INSERT INTO :old_table (request_id, operation, result_payload, status_code, created_at, expires_at)
	SELECT (k).key::uuid, (k).operation, COALESCE((k).response_body, ''), (k).response_status, (k).created_at, (k).expires_at
	 WHERE (k).status = 'completed'
	ON CONFLICT (request_id) DO UPDATE SET operation = excluded.operation, result_payload = excluded.result_payload,
		status_code = excluded.status_code, created_at = excluded.created_at, expires_at = excluded.expires_at;
END;

CREATE FUNCTION :"bridge".remove(scope text, operation text, key text) RETURNS void LANGUAGE sql VOLATILE
BEGIN ATOMIC
	DELETE FROM :old_table AS o WHERE o.request_id = remove.key::uuid AND o.operation = remove.operation;
END;
