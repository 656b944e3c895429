/*
 * front.sql - the API of the extension on a front database that holds no keys
 *
 *	psql -d FRONT [-v route_by=identity] -f sharding/plproxy/front.sql
 *
 * As a superuser, in a database with the extension plproxy, a foreign server
 * "idempotency" that lists the shards (p0, p1, ...) and a mapping for the caller;
 * README.md has the lines. All shards have to be up: the signatures are theirs.
 *
 * This file has what every call goes through: which shard, and what becomes of an
 * error. api.sql has the calls, move.sql what moves a scope to another shard.
 *
 * Two schemas, because a client calls idempotency.claim() and nothing else: what is
 * there speaks PL/pgSQL and calls a function of the same name in
 * idempotency_front, which speaks PL/Proxy. Neither is SECURITY DEFINER, so the shard
 * sees who calls, and it is the shard that says what he may do.
 */

\set ON_ERROR_STOP on
\if :{?route_by}
\else
	\set route_by scope
\endif

BEGIN;
SET LOCAL search_path TO pg_catalog, pg_temp;
SET LOCAL check_function_bodies = on;

CREATE SCHEMA idempotency;
COMMENT ON SCHEMA idempotency IS
	'Requests that are safe to repeat: the API of the extension, over shards';
CREATE SCHEMA idempotency_front;
COMMENT ON SCHEMA idempotency_front IS
	'Which shard has which scope, and what the functions of schema idempotency call';

------------------------------------------------------------------------------
-- Which shard
------------------------------------------------------------------------------

-- One row. How many shards the hash is spread over is laid down once: a shard that
-- comes later gets scopes by name, or every other scope would change its place.
CREATE TABLE idempotency_front.routing
(
	only_row	pg_catalog.bool NOT NULL DEFAULT true,
	hashed		pg_catalog.int4 NOT NULL,
	by_identity	pg_catalog.bool NOT NULL,
	CONSTRAINT routing_pkey PRIMARY KEY (only_row),
	CONSTRAINT routing_only_row_check CHECK (only_row),
	CONSTRAINT routing_hashed_check CHECK (hashed OPERATOR(pg_catalog.>) 0)
);
COMMENT ON TABLE idempotency_front.routing IS
	'How keys without a place of their own find their shard; never change it while there are keys';
COMMENT ON COLUMN idempotency_front.routing.only_row IS
	'There is one row';
COMMENT ON COLUMN idempotency_front.routing.hashed IS
	'The hash is spread over the shards 0 to this one, exclusive';
COMMENT ON COLUMN idempotency_front.routing.by_identity IS
	'False: the scope is hashed. True: scope, operation and key are';
COMMENT ON CONSTRAINT routing_pkey ON idempotency_front.routing IS
	'There is one row';
COMMENT ON CONSTRAINT routing_only_row_check ON idempotency_front.routing IS
	'There is one row';
COMMENT ON CONSTRAINT routing_hashed_check ON idempotency_front.routing IS
	'There is a shard';

CREATE TABLE idempotency_front.scopes
(
	scope		pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
	shard		pg_catalog.int4 NOT NULL,
	moving_to	pg_catalog.int4,
	leftover	pg_catalog.int4,
	changed_at	pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	CONSTRAINT scopes_pkey PRIMARY KEY (scope)
);
COMMENT ON TABLE idempotency_front.scopes IS
	'Scopes that are where the hash would not have them, or on their way; written by move_scope() and abandon_move()';
COMMENT ON COLUMN idempotency_front.scopes.scope IS
	'The scope';
COMMENT ON COLUMN idempotency_front.scopes.shard IS
	'Number of the shard that has it';
COMMENT ON COLUMN idempotency_front.scopes.moving_to IS
	'Number of the shard that it is being moved to; meanwhile every call is told 55P03';
COMMENT ON COLUMN idempotency_front.scopes.leftover IS
	'Number of the shard that still has rows of it, which nobody uses any more';
COMMENT ON COLUMN idempotency_front.scopes.changed_at IS
	'When this row was written last';
COMMENT ON CONSTRAINT scopes_pkey ON idempotency_front.scopes IS
	'A scope is in one place';

-- The partitions of the server, which are numbered without gaps.
CREATE FUNCTION idempotency_front.shards()
RETURNS SETOF pg_catalog.int4
LANGUAGE sql STABLE
AS $$
	SELECT (pg_catalog.row_number() OVER ())::pg_catalog.int4 OPERATOR(pg_catalog.-) 1
	FROM pg_catalog.pg_foreign_server AS s
	CROSS JOIN LATERAL pg_catalog.unnest(s.srvoptions) AS o(setting)
	WHERE s.srvname OPERATOR(pg_catalog.=) 'idempotency'
		AND o.setting OPERATOR(pg_catalog.~) '^(p|partition_)[0-9]+='
$$;
COMMENT ON FUNCTION idempotency_front.shards IS
	'Numbers of the shards, from 0';

-- An identity that is missing is for a shard to complain about; any will do.
--
-- SECURITY DEFINER, so that nobody has to be able to read who the other scopes
-- are. In a transaction with an older snapshot the answer may be old; then it is the
-- old shard that refuses (shard.sql), not this function.
CREATE FUNCTION idempotency_front.shard_of(scope pg_catalog.text,
	operation pg_catalog.text, key pg_catalog.text)
RETURNS pg_catalog.int4
LANGUAGE plpgsql STABLE SECURITY DEFINER
AS $$
DECLARE
	hashed pg_catalog.int4;
	by_identity pg_catalog.bool;
	place pg_catalog.int4;
	moving_to pg_catalog.int4;
	hash pg_catalog.int8;
BEGIN
	SELECT r.hashed, r.by_identity, s.shard, s.moving_to INTO STRICT hashed, by_identity, place, moving_to
	FROM idempotency_front.routing AS r
	LEFT JOIN idempotency_front.scopes AS s ON s.scope OPERATOR(pg_catalog.=) $1;
	IF moving_to IS NOT NULL THEN
		RAISE EXCEPTION 'the scope is being moved to another shard'
			USING ERRCODE = '55P03', HINT = 'Ask again in a moment, with the same key.';
	END IF;
	IF place IS NOT NULL THEN
		RETURN place;
	END IF;
	hash := pg_catalog.hashtextextended($1 COLLATE pg_catalog."C", 0);
	IF by_identity THEN
		hash := pg_catalog.hashtextextended($3 COLLATE pg_catalog."C",
			pg_catalog.hashtextextended($2 COLLATE pg_catalog."C", hash));
	END IF;
	RETURN (COALESCE(hash, 0) OPERATOR(pg_catalog.&) 9223372036854775807) OPERATOR(pg_catalog.%) hashed;
END
$$;
COMMENT ON FUNCTION idempotency_front.shard_of IS
	'Number of the shard that has the key; 55P03 while its scope is being moved';

CREATE FUNCTION idempotency_front.by_identity()
RETURNS pg_catalog.bool
LANGUAGE sql STABLE SECURITY DEFINER
AS $$
	SELECT r.by_identity FROM idempotency_front.routing AS r
$$;
COMMENT ON FUNCTION idempotency_front.by_identity IS
	'Whether keys are routed by scope, operation and key, and not by scope';

CREATE FUNCTION idempotency_front.unfinished_moves()
RETURNS pg_catalog.int8
LANGUAGE sql STABLE SECURITY DEFINER
AS $$
	SELECT pg_catalog.count(*) FROM idempotency_front.scopes AS s
	WHERE s.moving_to IS NOT NULL OR s.leftover IS NOT NULL
$$;
COMMENT ON FUNCTION idempotency_front.unfinished_moves IS
	'Number of scopes that are on their way, or have left rows behind';

------------------------------------------------------------------------------
-- Roles
------------------------------------------------------------------------------

-- The name that a role has on the shards: that of its user mapping, of the one for
-- everybody, or its own.
CREATE FUNCTION idempotency_front.shard_role(role pg_catalog.regrole)
RETURNS pg_catalog.text
LANGUAGE sql STABLE
AS $$
	SELECT pg_catalog.quote_ident(COALESCE((
		SELECT o.option_value
		FROM pg_catalog.pg_user_mappings AS m
		CROSS JOIN LATERAL pg_catalog.pg_options_to_table(m.umoptions) AS o
		WHERE m.srvname OPERATOR(pg_catalog.=) 'idempotency' AND o.option_name OPERATOR(pg_catalog.=) 'user'
			AND m.umuser OPERATOR(pg_catalog.=) ANY (ARRAY[r.oid, 0::pg_catalog.oid])
		ORDER BY m.umuser DESC
		LIMIT 1), r.rolname))
	FROM pg_catalog.pg_roles AS r
	WHERE r.oid OPERATOR(pg_catalog.=) $1
$$;
COMMENT ON FUNCTION idempotency_front.shard_role IS
	'Name of a role on the shards, quoted where need be';

-- The front gives way; what a role may do there is for the shards to say.
CREATE FUNCTION idempotency_front.open_to(role pg_catalog.regrole)
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
	EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA idempotency, idempotency_front TO %s', role);
	EXECUTE pg_catalog.format('GRANT USAGE ON FOREIGN SERVER idempotency TO %s', role);
	EXECUTE pg_catalog.format('GRANT USAGE ON TYPE idempotency.claim_result, idempotency.replay_result, idempotency.lookup_result TO %s', role);
	EXECUTE pg_catalog.format('GRANT EXECUTE ON ALL ROUTINES IN SCHEMA idempotency, idempotency_front TO %s', role);
	EXECUTE pg_catalog.format('GRANT SELECT ON ALL TABLES IN SCHEMA idempotency TO %s', role);
END
$$;
COMMENT ON FUNCTION idempotency_front.open_to IS
	'Lets a role call what the front has; each shard decides what it may do there';

------------------------------------------------------------------------------
-- Errors
------------------------------------------------------------------------------

CREATE TYPE idempotency_front.error AS
(
	code	pg_catalog.text,
	message	pg_catalog.text,
	detail	pg_catalog.text,
	hint	pg_catalog.text,
	reason	pg_catalog.text
);
COMMENT ON TYPE idempotency_front.error IS
	'What an error says';
COMMENT ON COLUMN idempotency_front.error.code IS
	'SQLSTATE';
COMMENT ON COLUMN idempotency_front.error.message IS
	'Message';
COMMENT ON COLUMN idempotency_front.error.detail IS
	'Detail, or an empty string';
COMMENT ON COLUMN idempotency_front.error.hint IS
	'Hint, or an empty string';
COMMENT ON COLUMN idempotency_front.error.reason IS
	'The field for the name of a constraint, or an empty string';

-- PL/Proxy passes on SQLSTATE, message, detail and hint, puts words before each, and
-- loses the name of the constraint, which for IK001 is the reason. So it is told
-- from the detail. What has no SQLSTATE of a shard is about the connection, and the
-- texts of libpq name no password; that of "connect timeout" shows the whole
-- connection string, so it is not repeated.
CREATE FUNCTION idempotency_front.raise_as_shard(error idempotency_front.error)
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
	IF error.code OPERATOR(pg_catalog.=) 'XX000' AND error.message OPERATOR(pg_catalog.~) '^PL/Proxy function ' THEN
		error.message := pg_catalog.regexp_replace(error.message, '^PL/Proxy function [^ ]*: ', '');
		IF error.message OPERATOR(pg_catalog.~) '^connect timeout to' THEN
			error.message := 'connect timeout';
		END IF;
		IF error.message OPERATOR(pg_catalog.~) '^(connect timeout|\[[^]]*\] PQconnect(Start|Poll): )' THEN
			RAISE EXCEPTION 'the shard cannot be reached'
				USING ERRCODE = '08001', DETAIL = error.message,
					HINT = 'Nothing was sent. Ask again with the same key.';
		END IF;
		IF error.message OPERATOR(pg_catalog.~) '^(query timeout|\[[^]]*\] )' THEN
			error.code := '57P01';
		END IF;
	END IF;

	error.message := pg_catalog.regexp_replace(error.message, '^[^ ]*\(\d+\): \[[^]]*\] REMOTE [^:]*: ', '');
	error.detail := pg_catalog.regexp_replace(error.detail, '^Remote detail: ', '');
	error.hint := pg_catalog.regexp_replace(error.hint, '^Remote hint: ', '');
	-- Not the caller's connection, as his driver would think.
	IF error.code OPERATOR(pg_catalog.=) ANY (ARRAY['57P01', '57P02']) THEN
		RAISE EXCEPTION 'the connection to the shard was lost'
			USING ERRCODE = '08006', DETAIL = error.message,
				HINT = 'The shard may have done it or not. Ask again with the same key, a claim with the same claim_id.';
	END IF;
	IF error.code OPERATOR(pg_catalog.=) 'IK001' AND error.reason OPERATOR(pg_catalog.=) '' THEN
		error.reason := CASE
			WHEN error.detail OPERATOR(pg_catalog.~~) '%another claim has the key%' THEN 'taken_over'
			WHEN error.detail OPERATOR(pg_catalog.~~) '%completed%' THEN 'completed'
			ELSE 'forgotten' END;
		RAISE EXCEPTION '%', error.message USING ERRCODE = error.code, DETAIL = error.detail, HINT = error.hint, CONSTRAINT = error.reason;
	END IF;
	-- An option that is given is sent, even if it is empty.
	IF error.detail OPERATOR(pg_catalog.<>) '' AND error.hint OPERATOR(pg_catalog.<>) '' THEN
		RAISE EXCEPTION '%', error.message USING ERRCODE = error.code, DETAIL = error.detail, HINT = error.hint;
	ELSIF error.detail OPERATOR(pg_catalog.<>) '' THEN
		RAISE EXCEPTION '%', error.message USING ERRCODE = error.code, DETAIL = error.detail;
	ELSIF error.hint OPERATOR(pg_catalog.<>) '' THEN
		RAISE EXCEPTION '%', error.message USING ERRCODE = error.code, HINT = error.hint;
	END IF;
	RAISE EXCEPTION '%', error.message USING ERRCODE = error.code;
END
$$;
COMMENT ON FUNCTION idempotency_front.raise_as_shard IS
	'Raises the error of a shard as the shard has raised it';

-- What would have to be in one transaction with the caller's other statements. The
-- shard commits each call by itself.
CREATE FUNCTION idempotency_front.refuse(message pg_catalog.text, hint pg_catalog.text)
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
	RAISE EXCEPTION '%', message
		USING ERRCODE = '0A000', DETAIL = 'Nothing was sent: a shard commits each call by itself.', HINT = hint;
END
$$;
COMMENT ON FUNCTION idempotency_front.refuse IS
	'Refuses what cannot work over shards';

CREATE FUNCTION idempotency_front.check_writable(name pg_catalog.text)
RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
	IF pg_catalog.current_setting('transaction_read_only')::pg_catalog.bool THEN
		RAISE EXCEPTION 'cannot execute %() in a read-only transaction', name
			USING ERRCODE = '25006', HINT = 'Send it to the primary, in a transaction that may write.';
	END IF;
END
$$;
COMMENT ON FUNCTION idempotency_front.check_writable IS
	'Keeps a read-only transaction from writing on a shard';

-- The present number of shards is the number that the hash is spread over.
SELECT pg_catalog.set_config('idempotency_front.route_by', :'route_by', true) AS route_by \gset
DO $$
DECLARE
	route_by pg_catalog.text := pg_catalog.current_setting('idempotency_front.route_by');
BEGIN
	IF route_by OPERATOR(pg_catalog.<>) ALL (ARRAY['scope', 'identity']) THEN
		RAISE EXCEPTION 'route_by is neither "scope" nor "identity"'
			USING ERRCODE = '22023', HINT = 'Leave it out to route by scope.';
	END IF;
	IF NOT EXISTS (SELECT FROM idempotency_front.shards()) THEN
		RAISE EXCEPTION 'there is no foreign server "idempotency" that lists shards'
			USING ERRCODE = '55000', HINT = 'CREATE SERVER idempotency FOREIGN DATA WRAPPER plproxy OPTIONS (modular_mapping ''1'', p0 ''...'', ...); see README.md.';
	END IF;
	INSERT INTO idempotency_front.routing (hashed, by_identity)
	SELECT pg_catalog.count(*), route_by OPERATOR(pg_catalog.=) 'identity' FROM idempotency_front.shards();
END
$$;

\ir api.sql
\ir move.sql

COMMIT;
