-- booking.sql - system D: the idempotency layer of a booking site (Supabase)
--
-- The only one that records a request before its work, so both sides also see what
-- the other is at. Users and keys are uuids. What is completed lives seven days from
-- when it was begun; what failed is done again.

\set old_table public.idempotency_keys
-- A unique key of the old table, along which it is moved.
\set walk 'user_id, route, key'
-- How long an old instance may be at a request that it has begun. After that the
-- key is held until it completes, or a person decides: nobody else gets it.
\set lease '15 min'

-- The SQLSTATE by which an old instance learns that somebody else was first: that
-- of its own unique key, to which it answers 409.
CREATE FUNCTION :"bridge".refusal() RETURNS text LANGUAGE sql IMMUTABLE
RETURN '23505';

-- What a row means.
CREATE FUNCTION :"bridge".request_of(o :old_table) RETURNS :"bridge".request LANGUAGE sql STABLE
RETURN CAST(ROW((o).user_id, (o).route, (o).key, (o).status, (o).response_status, (o).response::text,
                (o).created_at, (o).completed_at, (o).created_at + interval '7 days') AS :"bridge".request);

-- An answer as the old table holds it: JSON, or a string where it is none. In this
-- form two answers are compared, too.
CREATE FUNCTION :"bridge".as_json(answer text) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	RETURN answer::jsonb;
EXCEPTION WHEN data_exception THEN
	RETURN to_jsonb(answer);
END $$;

CREATE FUNCTION :"bridge".comparable(status int, answer text) RETURNS text LANGUAGE sql IMMUTABLE
RETURN ROW(status, :"bridge".as_json(answer))::text;

-- Which keys of the extension could be this table's.
CREATE FUNCTION :"bridge".covers(scope text, operation text, key text) RETURNS boolean LANGUAGE sql STABLE
RETURN scope ~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'
   AND key ~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$';

-- The row that has the key of one that is covered, locked; what a new instance has
-- recorded; what it has cleared.
CREATE FUNCTION :"bridge".rows_of(scope text, operation text, key text) RETURNS SETOF :old_table LANGUAGE sql VOLATILE
BEGIN ATOMIC
	SELECT o.* FROM :old_table AS o
	 WHERE o.user_id = rows_of.scope::uuid AND o.route = rows_of.operation AND o.key = rows_of.key::uuid FOR SHARE;
END;

CREATE FUNCTION :"bridge".write(k idempotency.idempotency_keys) RETURNS void LANGUAGE sql VOLATILE
BEGIN ATOMIC
	INSERT INTO :old_table (user_id, route, key, status, response_status, response, created_at, completed_at)
	SELECT (k).scope::uuid, (k).operation, (k).key::uuid, CASE (k).status WHEN 'held' THEN 'in_progress' ELSE (k).status END,
	       (k).response_status, :"bridge".as_json((k).response_body), (k).created_at, (k).completed_at
	ON CONFLICT (user_id, route, key) DO UPDATE SET status = excluded.status, response_status = excluded.response_status,
		response = excluded.response, created_at = excluded.created_at, completed_at = excluded.completed_at;
END;

CREATE FUNCTION :"bridge".remove(scope text, operation text, key text) RETURNS void LANGUAGE sql VOLATILE
BEGIN ATOMIC
	DELETE FROM :old_table AS o
	 WHERE o.user_id = remove.scope::uuid AND o.route = remove.operation AND o.key = remove.key::uuid;
END;
