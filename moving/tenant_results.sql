-- tenant_results.sql - system B: results of tenants' operations (Prisma)
--
-- The old key is unique by itself, whosever it is. A tenant that is not in the
-- table of tenants cannot have a row in the old table. No status, headers or bytes
-- of an answer can be held there.

\set old_table '"IdempotencyKey"'
-- A unique key of the old table, along which it is moved.
\set walk key
-- How long an old instance may be at a request that it has begun; here it records
-- only what is done.
\set lease '15 min'

-- The SQLSTATE by which an old instance learns that somebody else was first.
CREATE FUNCTION :"bridge".refusal() RETURNS text LANGUAGE sql IMMUTABLE
RETURN '40001';

-- What a row means.
CREATE FUNCTION :"bridge".request_of(o :old_table) RETURNS :"bridge".request LANGUAGE sql STABLE
RETURN CAST(ROW((o)."tenantId", (o).operation, (o).key, 'completed', NULL, (o).result,
                (o)."createdAt", (o)."createdAt", (o)."expiresAt") AS :"bridge".request);

-- The form in which two answers are compared.
CREATE FUNCTION :"bridge".comparable(status int, answer text) RETURNS text LANGUAGE sql IMMUTABLE
RETURN COALESCE(answer, '');

-- Which keys of the extension could be this table's.
CREATE FUNCTION :"bridge".covers(scope text, operation text, key text) RETURNS boolean LANGUAGE sql STABLE
RETURN EXISTS (SELECT FROM "Tenant" AS t WHERE t.id = scope);

-- The row that has the key of one that is covered, locked; what a new instance has
-- recorded; what it has cleared.
CREATE FUNCTION :"bridge".rows_of(scope text, operation text, key text) RETURNS SETOF :old_table LANGUAGE sql VOLATILE
BEGIN ATOMIC
	SELECT o.* FROM :old_table AS o
	 WHERE o.key = rows_of.key FOR SHARE;
END;

CREATE FUNCTION :"bridge".write(k idempotency.idempotency_keys) RETURNS void LANGUAGE sql VOLATILE
BEGIN ATOMIC
	INSERT INTO :old_table (id, key, "tenantId", operation, result, "expiresAt", "createdAt", "updatedAt")
	SELECT gen_random_uuid(), (k).key, (k).scope, (k).operation, COALESCE((k).response_body, ''), (k).expires_at, (k).created_at,
	       (k).completed_at
	 WHERE (k).status = 'completed'
	ON CONFLICT (key) DO UPDATE SET "tenantId" = excluded."tenantId", operation = excluded.operation, result = excluded.result,
		"expiresAt" = excluded."expiresAt", "createdAt" = excluded."createdAt", "updatedAt" = excluded."updatedAt";
END;

CREATE FUNCTION :"bridge".remove(scope text, operation text, key text) RETURNS void LANGUAGE sql VOLATILE
BEGIN ATOMIC
	DELETE FROM :old_table AS o
	 WHERE o.key = remove.key AND o."tenantId" = remove.scope AND o.operation = remove.operation;
END;
