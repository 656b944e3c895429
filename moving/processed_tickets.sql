-- processed_tickets.sql - system C: processed tickets of a webhook consumer (Prisma)
--
-- The provider is the scope, the operation is 'ticket'. A ticket lives seven days
-- from when it was processed; one that failed is not moved, so that it is done again.
-- In the old table a ticket's number is unique over all providers, so as long as the
-- bridge stands two providers cannot use the same one at a time.

\set old_table processed_tickets
-- A unique key of the old table, along which it is moved.
\set walk '"ticketId"'
-- How long an old instance may be at a request that it has begun; here it records
-- only what is done.
\set lease '15 min'

-- The SQLSTATE by which an old instance learns that somebody else was first.
CREATE FUNCTION :"bridge".refusal() RETURNS text LANGUAGE sql IMMUTABLE
RETURN '40001';

-- What a row means.
CREATE FUNCTION :"bridge".request_of(o :old_table) RETURNS :"bridge".request LANGUAGE sql STABLE
RETURN CAST(ROW((o).provider, 'ticket', (o)."ticketId", CASE WHEN (o).success THEN 'completed' ELSE 'failed' END, NULL, NULL,
                (o)."processedAt", (o)."processedAt", (o)."processedAt" + interval '7 days') AS :"bridge".request);

-- The form in which two answers are compared: the old table has none.
CREATE FUNCTION :"bridge".comparable(status int, answer text) RETURNS text LANGUAGE sql IMMUTABLE
RETURN NULL::text;

-- Which keys of the extension could be this table's.
CREATE FUNCTION :"bridge".covers(scope text, operation text, key text) RETURNS boolean LANGUAGE sql STABLE
RETURN operation = 'ticket' AND length(scope) <= 50;

-- The row that has the key of one that is covered, locked; what a new instance has
-- recorded; what it has cleared.
CREATE FUNCTION :"bridge".rows_of(scope text, operation text, key text) RETURNS SETOF :old_table LANGUAGE sql VOLATILE
BEGIN ATOMIC
	SELECT o.* FROM :old_table AS o WHERE o."ticketId" = rows_of.key FOR SHARE;
END;

CREATE FUNCTION :"bridge".write(k idempotency.idempotency_keys) RETURNS void LANGUAGE sql VOLATILE
BEGIN ATOMIC
	INSERT INTO :old_table (id, "ticketId", provider, "processedAt", success)
	SELECT gen_random_uuid(), (k).key, (k).scope, COALESCE((k).completed_at, clock_timestamp()), (k).status = 'completed'
	 WHERE (k).status IN ('completed', 'failed')
	ON CONFLICT ("ticketId") DO UPDATE SET provider = excluded.provider, "processedAt" = excluded."processedAt",
		success = excluded.success;
END;

CREATE FUNCTION :"bridge".remove(scope text, operation text, key text) RETURNS void LANGUAGE sql VOLATILE
BEGIN ATOMIC
	DELETE FROM :old_table AS o WHERE o."ticketId" = remove.key AND o.provider = remove.scope;
END;
