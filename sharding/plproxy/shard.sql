/*
 * shard.sql - what a shard needs so that scopes can be moved from it and to it
 *
 *	psql -d SHARD -f sharding/plproxy/shard.sql
 *
 * As the owner of the extension's tables, a superuser. Without it a shard serves all
 * calls, but no scope can leave it or come to it. move.sql, on the front, says in
 * which order these functions are called.
 *
 * The fence. While a scope is on its way, and ever after on the shard that it has
 * left, no row of it may be written: neither by a call that was sent before the front
 * knew, nor by one whose front has died since, nor by somebody who is connected to
 * the old shard. A lock at the front would stop none of these. So a trigger is on
 * the tables for as long as any scope is fenced here, and the lock that puts up a
 * fence waits for everybody who is writing. Whoever writes later finds the fence, and
 * his transaction fails with 55P03, with the rows of his work.
 */

\set ON_ERROR_STOP on
BEGIN;
SET LOCAL search_path TO pg_catalog, pg_temp;

CREATE SCHEMA idempotency_shard;
COMMENT ON SCHEMA idempotency_shard IS
	'Moves scopes from this shard to another, and back';
REVOKE ALL ON SCHEMA idempotency_shard FROM PUBLIC;

CREATE TABLE idempotency_shard.fences
(
	scope	pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
	coming	pg_catalog.bool NOT NULL,
	ticket	pg_catalog.int8 NOT NULL,
	since	pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	writer	pg_catalog.int4,
	CONSTRAINT fences_pkey PRIMARY KEY (scope)
);
COMMENT ON TABLE idempotency_shard.fences IS
	'Scopes of which no row may be written here';
COMMENT ON COLUMN idempotency_shard.fences.scope IS
	'The scope';
COMMENT ON COLUMN idempotency_shard.fences.coming IS
	'True: it is on its way here. False: it is on its way elsewhere, or there already';
COMMENT ON COLUMN idempotency_shard.fences.ticket IS
	'Number of the attempt to move it that may write behind the fence; an earlier one is refused, however late its statements come';
COMMENT ON COLUMN idempotency_shard.fences.since IS
	'When the fence was put up';
COMMENT ON COLUMN idempotency_shard.fences.writer IS
	'Process that may write all the same; never committed';
COMMENT ON CONSTRAINT fences_pkey ON idempotency_shard.fences IS
	'One fence for a scope';

-- Who has an older snapshot does not see a new fence, but he sees that this row has
-- changed, because that is an error for him.
CREATE TABLE idempotency_shard.fence_changes
(
	number	pg_catalog.int8 NOT NULL
);
COMMENT ON TABLE idempotency_shard.fence_changes IS
	'One row, written with every new fence and ticket';
COMMENT ON COLUMN idempotency_shard.fence_changes.number IS
	'The last ticket';
INSERT INTO idempotency_shard.fence_changes VALUES (0);

-- What goes along. The keys come first: they decide.
CREATE TABLE idempotency_shard.tables
(
	place			pg_catalog.int4 NOT NULL,
	relation		pg_catalog.regclass NOT NULL,
	scope_column	pg_catalog.name NOT NULL,
	CONSTRAINT tables_pkey PRIMARY KEY (relation)
);
COMMENT ON TABLE idempotency_shard.tables IS
	'Tables whose rows move with their scope; written by move_along()';
COMMENT ON COLUMN idempotency_shard.tables.place IS
	'They are filled in this order, and emptied in the opposite one';
COMMENT ON COLUMN idempotency_shard.tables.relation IS
	'The table';
COMMENT ON COLUMN idempotency_shard.tables.scope_column IS
	'Its column of type text that says whose the row is';
COMMENT ON CONSTRAINT tables_pkey ON idempotency_shard.tables IS
	'Each table once';
INSERT INTO idempotency_shard.tables VALUES (0, 'idempotency.idempotency_keys', 'scope');

CREATE FUNCTION idempotency_shard.move_along(relation pg_catalog.regclass, scope_column pg_catalog.name, place pg_catalog.int4 DEFAULT 1)
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute AS a
		WHERE a.attrelid OPERATOR(pg_catalog.=) $1 AND a.attname OPERATOR(pg_catalog.=) $2
			AND a.atttypid OPERATOR(pg_catalog.=) 'pg_catalog.text'::pg_catalog.regtype)
	THEN
		RAISE EXCEPTION 'table % has no column "%" of type text', $1, $2
			USING ERRCODE = '42703', HINT = 'Name the column that holds the scope, as it is in the key.';
	END IF;
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_index AS i
		WHERE i.indrelid OPERATOR(pg_catalog.=) $1 AND i.indisprimary)
	THEN
		RAISE EXCEPTION 'table % has no primary key', $1
			USING ERRCODE = '55000', HINT = 'Give it one that is unique over all shards, such as a uuid.';
	END IF;
	INSERT INTO idempotency_shard.tables (place, relation, scope_column) VALUES ($3, $1, $2)
	ON CONFLICT ON CONSTRAINT tables_pkey DO UPDATE SET place = $3, scope_column = $2;
END
$$;
COMMENT ON FUNCTION idempotency_shard.move_along IS
	'Lets the rows of a table move with their scope; tables that others refer to have the smaller place';

CREATE FUNCTION idempotency_shard.check_fences(scopes pg_catalog.text[])
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
	IF pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.<>) 'read committed' THEN
		PERFORM FROM idempotency_shard.fence_changes FOR SHARE;
	END IF;
	IF EXISTS (SELECT FROM idempotency_shard.fences AS f
		WHERE f.scope OPERATOR(pg_catalog.=) ANY (scopes) AND f.writer IS DISTINCT FROM pg_catalog.pg_backend_pid())
	THEN
		RAISE EXCEPTION 'the scope is on another shard, or on its way there'
			USING ERRCODE = '55P03', HINT = 'Ask the front again, with the same key.';
	END IF;
END
$$;
COMMENT ON FUNCTION idempotency_shard.check_fences IS
	'Refuses scopes that are fenced, unless it is the mover who writes';

CREATE FUNCTION idempotency_shard.refuse_fenced()
RETURNS trigger
LANGUAGE plpgsql
AS $$
DECLARE
	scopes pg_catalog.text[];
BEGIN
	IF TG_OP OPERATOR(pg_catalog.<>) 'INSERT' THEN
		scopes[1] := pg_catalog.to_jsonb(old) OPERATOR(pg_catalog.->>) TG_ARGV[0];
	END IF;
	IF TG_OP OPERATOR(pg_catalog.<>) 'DELETE' THEN
		scopes[2] := pg_catalog.to_jsonb(new) OPERATOR(pg_catalog.->>) TG_ARGV[0];
	END IF;
	PERFORM idempotency_shard.check_fences(scopes);
	IF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN
		RETURN old;
	END IF;
	RETURN new;
END
$$;
COMMENT ON FUNCTION idempotency_shard.refuse_fenced IS
	'Trigger that is on the tables while a scope is fenced; its argument is the scope''s column';

-- The table of the keys has wide rows and a known shape, and is written most.
CREATE FUNCTION idempotency_shard.refuse_fenced_key()
RETURNS trigger
LANGUAGE plpgsql
AS $$
DECLARE
	whose pg_catalog.text := CASE TG_OP WHEN 'DELETE' THEN old.scope ELSE new.scope END;
BEGIN
	-- Clean-up goes on, here and there.
	IF TG_OP OPERATOR(pg_catalog.=) 'DELETE' AND idempotency.key_standing(old.status, old.expires_at, old.locked_until,
		old.hold_if_abandoned, pg_catalog.clock_timestamp()) OPERATOR(pg_catalog.=) 'expired'
	THEN
		RETURN old;
	END IF;
	PERFORM idempotency_shard.check_fences(ARRAY[whose]);
	IF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN
		RETURN old;
	END IF;
	RETURN new;
END
$$;
COMMENT ON FUNCTION idempotency_shard.refuse_fenced_key IS
	'The same for the table of the keys';

-- Waits for all who write, two seconds at most, because others wait behind it.
CREATE FUNCTION idempotency_shard.lock_tables()
RETURNS void
LANGUAGE plpgsql
SET lock_timeout = '2s'
AS $$
DECLARE
	t pg_catalog.record;
BEGIN
	FOR t IN SELECT relation, scope_column FROM idempotency_shard.tables ORDER BY place, relation::pg_catalog.oid LOOP
		EXECUTE pg_catalog.format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', t.relation);
	END LOOP;
END
$$;
COMMENT ON FUNCTION idempotency_shard.lock_tables IS
	'Waits until nobody is writing to the tables that move, and keeps others from it until the transaction ends';

CREATE FUNCTION idempotency_shard.create_triggers()
RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
	t pg_catalog.record;
BEGIN
	FOR t IN
		SELECT s.relation, s.scope_column FROM idempotency_shard.tables AS s
		WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_trigger AS g
			WHERE g.tgrelid OPERATOR(pg_catalog.=) s.relation AND g.tgname OPERATOR(pg_catalog.=) 'refuse_fenced')
	LOOP
		EXECUTE pg_catalog.format('CREATE TRIGGER refuse_fenced BEFORE INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION %s',
			t.relation, CASE WHEN t.relation OPERATOR(pg_catalog.=) 'idempotency.idempotency_keys'::pg_catalog.regclass
				THEN 'idempotency_shard.refuse_fenced_key()'
				ELSE pg_catalog.format('idempotency_shard.refuse_fenced(%L)', t.scope_column) END);
	END LOOP;
END
$$;
COMMENT ON FUNCTION idempotency_shard.create_triggers IS
	'Puts the triggers on the tables that do not have them';

CREATE FUNCTION idempotency_shard.has_rows(scope pg_catalog.text)
RETURNS pg_catalog.bool
LANGUAGE plpgsql
AS $$
DECLARE
	t pg_catalog.record;
	any_row pg_catalog.bool;
BEGIN
	FOR t IN SELECT relation, scope_column FROM idempotency_shard.tables LOOP
		EXECUTE pg_catalog.format('SELECT EXISTS (SELECT FROM %s WHERE %I OPERATOR(pg_catalog.=) $1)', t.relation, t.scope_column)
			INTO any_row USING scope;
		IF any_row THEN
			RETURN true;
		END IF;
	END LOOP;
	RETURN false;
END
$$;
COMMENT ON FUNCTION idempotency_shard.has_rows IS
	'Whether any row of the scope is here';

-- What is here of a scope that has no fence is in use, whatever the front believes, so
-- it is never taken for the rest of an earlier try. Again is harmless, and gives a
-- new ticket: what an earlier attempt has sent, whose front is gone by now, comes too
-- late.
CREATE FUNCTION idempotency_shard.fence(scope pg_catalog.text, coming pg_catalog.bool)
RETURNS pg_catalog.int8
LANGUAGE plpgsql
AS $$
DECLARE
	fresh pg_catalog.int8;
BEGIN
	PERFORM idempotency_shard.lock_tables();
	IF coming AND NOT EXISTS (SELECT FROM idempotency_shard.fences AS f WHERE f.scope OPERATOR(pg_catalog.=) $1)
		AND idempotency_shard.has_rows($1)
	THEN
		RAISE EXCEPTION 'this shard has rows of the scope that are in use'
			USING ERRCODE = '55000', HINT = 'Compare idempotency_front.scopes with what the shards have; the front may have lost its last changes.';
	END IF;
	UPDATE idempotency_shard.fence_changes AS c SET number = c.number OPERATOR(pg_catalog.+) 1 RETURNING c.number INTO fresh;
	INSERT INTO idempotency_shard.fences AS f (scope, coming, ticket) VALUES ($1, $2, fresh)
	ON CONFLICT ON CONSTRAINT fences_pkey DO UPDATE SET coming = $2, ticket = excluded.ticket,
		since = CASE WHEN f.coming OPERATOR(pg_catalog.=) $2 THEN f.since ELSE pg_catalog.clock_timestamp() END;
	PERFORM idempotency_shard.create_triggers();
	RETURN fresh;
END
$$;
COMMENT ON FUNCTION idempotency_shard.fence IS
	'From its commit on no row of the scope can be written here, and whoever was writing one has committed or failed; returns the ticket by which it can be passed';

CREATE FUNCTION idempotency_shard.renew(scope pg_catalog.text)
RETURNS pg_catalog.int8
LANGUAGE plpgsql
AS $$
DECLARE
	fresh pg_catalog.int8;
BEGIN
	UPDATE idempotency_shard.fence_changes AS c SET number = c.number OPERATOR(pg_catalog.+) 1 RETURNING c.number INTO fresh;
	UPDATE idempotency_shard.fences AS f SET ticket = fresh WHERE f.scope OPERATOR(pg_catalog.=) $1;
	RETURN CASE WHEN FOUND THEN fresh END;
END
$$;
COMMENT ON FUNCTION idempotency_shard.renew IS
	'Gives a new ticket for the fence of a scope; NULL if it has none';

-- Locks nothing: who does not see yet that it is gone is refused, and asks again. The
-- triggers stay, since to take them off one has to wait even for readers.
CREATE FUNCTION idempotency_shard.lift(scope pg_catalog.text, ticket pg_catalog.int8)
RETURNS pg_catalog.bool
LANGUAGE plpgsql
AS $$
BEGIN
	DELETE FROM idempotency_shard.fences AS f
	WHERE f.scope OPERATOR(pg_catalog.=) $1 AND f.ticket OPERATOR(pg_catalog.=) $2;
	RETURN FOUND;
END
$$;
COMMENT ON FUNCTION idempotency_shard.lift IS
	'Takes the fence of a scope away; true if there was one with that ticket';

-- Not before every connection that may still have sent a call here by an old route is
-- gone.
CREATE FUNCTION idempotency_shard.lift_old(older_than pg_catalog.interval)
RETURNS pg_catalog.int8
LANGUAGE plpgsql
SET lock_timeout = '2s'
AS $$
DECLARE
	lifted pg_catalog.int8;
	t pg_catalog.record;
BEGIN
	DELETE FROM idempotency_shard.fences AS f
	WHERE NOT f.coming AND f.since OPERATOR(pg_catalog.<) (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) older_than)
		AND NOT idempotency_shard.has_rows(f.scope);
	GET DIAGNOSTICS lifted = ROW_COUNT;
	IF NOT EXISTS (SELECT FROM idempotency_shard.fences) THEN
		FOR t IN
			SELECT g.tgrelid::pg_catalog.regclass AS relation FROM pg_catalog.pg_trigger AS g
			JOIN idempotency_shard.tables AS s ON s.relation OPERATOR(pg_catalog.=) g.tgrelid
			WHERE g.tgname OPERATOR(pg_catalog.=) 'refuse_fenced'
			ORDER BY s.place, s.relation::pg_catalog.oid
		LOOP
			EXECUTE pg_catalog.format('DROP TRIGGER refuse_fenced ON %s', t.relation);
		END LOOP;
	END IF;
	RETURN lifted;
END
$$;
COMMENT ON FUNCTION idempotency_shard.lift_old IS
	'Takes away fences of scopes that left so long ago, and says how many; with the last one the triggers go';

-- Rows travel as text, which every type can be written to and read from. The settings
-- are those under which it is read again.
CREATE FUNCTION idempotency_shard.export(scope pg_catalog.text, relation pg_catalog.text, after pg_catalog.text, max_rows pg_catalog.int4,
	OUT place pg_catalog.text, OUT line pg_catalog.text)
RETURNS SETOF record
LANGUAGE plpgsql STABLE
SET DateStyle = 'ISO, MDY' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET bytea_output = 'hex' SET extra_float_digits = 1
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	t pg_catalog.record;
BEGIN
	SELECT s.relation, s.scope_column INTO STRICT t
	FROM idempotency_shard.tables AS s WHERE s.relation = $2::pg_catalog.regclass;
	RETURN QUERY EXECUTE pg_catalog.format(
		'SELECT t.ctid::pg_catalog.text, t::pg_catalog.text FROM %s AS t WHERE t.%I = $1 AND t.ctid > $2::pg_catalog.tid ORDER BY t.ctid LIMIT $3',
		t.relation, t.scope_column) USING scope, after, max_rows;
END
$$;
COMMENT ON FUNCTION idempotency_shard.export IS
	'Rows of a scope, from a place in the table on';

CREATE FUNCTION idempotency_shard.import(scope pg_catalog.text, ticket pg_catalog.int8, relation pg_catalog.text, lines pg_catalog.text[])
RETURNS pg_catalog.int8
LANGUAGE plpgsql
SET DateStyle = 'ISO, MDY' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET bytea_output = 'hex' SET extra_float_digits = 1
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	imported pg_catalog.int8;
BEGIN
	PERFORM idempotency_shard.pass_fence(scope, ticket);
	EXECUTE pg_catalog.format(
		'INSERT INTO %1$s OVERRIDING SYSTEM VALUE SELECT (r.row_here).* FROM (SELECT line::%1$s AS row_here FROM pg_catalog.unnest($1) AS line OFFSET 0) AS r',
		$3::pg_catalog.regclass) USING lines;
	GET DIAGNOSTICS imported = ROW_COUNT;
	UPDATE idempotency_shard.fences AS f SET writer = NULL WHERE f.scope = $1;
	RETURN imported;
END
$$;
COMMENT ON FUNCTION idempotency_shard.import IS
	'Puts rows of a scope in that is on its way here';

CREATE FUNCTION idempotency_shard.pass_fence(scope pg_catalog.text, ticket pg_catalog.int8)
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
	UPDATE idempotency_shard.fences AS f SET writer = pg_catalog.pg_backend_pid()
	WHERE f.scope OPERATOR(pg_catalog.=) $1 AND f.ticket OPERATOR(pg_catalog.=) $2;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'the scope has no fence here with this ticket'
			USING ERRCODE = '55000', HINT = 'Its rows are in use, or somebody else is moving them. Let move_scope() call this.';
	END IF;
END
$$;
COMMENT ON FUNCTION idempotency_shard.pass_fence IS
	'Lets this transaction write rows of a fenced scope; its end must take that back';

CREATE FUNCTION idempotency_shard.empty(scope pg_catalog.text, ticket pg_catalog.int8)
RETURNS pg_catalog.int8
LANGUAGE plpgsql
AS $$
DECLARE
	t pg_catalog.record;
	deleted pg_catalog.int8 := 0;
	more pg_catalog.int8;
BEGIN
	PERFORM idempotency_shard.pass_fence($1, $2);
	FOR t IN SELECT relation, scope_column FROM idempotency_shard.tables ORDER BY place DESC, relation::pg_catalog.oid DESC LOOP
		EXECUTE pg_catalog.format('DELETE FROM %s WHERE %I OPERATOR(pg_catalog.=) $1', t.relation, t.scope_column) USING scope;
		GET DIAGNOSTICS more = ROW_COUNT;
		deleted := deleted OPERATOR(pg_catalog.+) more;
	END LOOP;
	UPDATE idempotency_shard.fences AS f SET writer = NULL WHERE f.scope OPERATOR(pg_catalog.=) $1;
	RETURN deleted;
END
$$;
COMMENT ON FUNCTION idempotency_shard.empty IS
	'Deletes the rows of a fenced scope and says how many';

CREATE FUNCTION idempotency_shard.digest(scope pg_catalog.text,
	OUT relation pg_catalog.text, OUT number_of_rows pg_catalog.int8, OUT digest pg_catalog.numeric)
RETURNS SETOF record
LANGUAGE plpgsql STABLE
SET DateStyle = 'ISO, MDY' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET bytea_output = 'hex' SET extra_float_digits = 1
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	t pg_catalog.record;
BEGIN
	FOR t IN SELECT s.relation, s.scope_column FROM idempotency_shard.tables AS s ORDER BY s.place, s.relation::pg_catalog.text LOOP
		RETURN QUERY EXECUTE pg_catalog.format(
			'SELECT $2, pg_catalog.count(*), pg_catalog.sum(pg_catalog.hashtextextended(t::pg_catalog.text, 0)) FROM %s AS t WHERE t.%I = $1',
			t.relation, t.scope_column) USING scope, t.relation::pg_catalog.text;
	END LOOP;
END
$$;
COMMENT ON FUNCTION idempotency_shard.digest IS
	'What there is of a scope, table by table';

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA idempotency_shard FROM PUBLIC;
COMMIT;
