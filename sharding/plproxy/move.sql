/*
 * move.sql - moving scopes from one shard to another, from the front, under load
 *
 *	CALL idempotency_move.move_scope('acme', 4);
 *
 * Each step can be repeated, so the procedure is called again where it was
 * interrupted, and goes on. In this order:
 *
 *	1. the front answers every call of the scope with 55P03;
 *	2. the shards put up their fences (shard.sql): from then on nothing of the scope
 *	   changes, on the one or the other;
 *	3. what there is of an earlier try is deleted on the new shard, all is copied, and
 *	   both are compared;
 *	4. the front knows the new shard, and commits that;
 *	5. the new shard takes its fence away, and calls go on;
 *	6. the old shard deletes its rows. Its fence stays.
 *
 * Between 2 and 5 nobody can write rows of the scope anywhere; so a crash leaves it
 * refused, never in two places. The row of idempotency_front.scopes is locked during
 * 2 to 4, so that two cannot move one scope at a time.
 */

CREATE SCHEMA idempotency_move;
COMMENT ON SCHEMA idempotency_move IS
	'Moves scopes between shards; for an administrator, who is superuser or owner of the tables on the shards';
REVOKE ALL ON SCHEMA idempotency_move FROM PUBLIC;

CREATE FUNCTION idempotency_move.fence(shard pg_catalog.int4, pg_catalog.text, pg_catalog.bool)
RETURNS pg_catalog.int8
LANGUAGE plproxy
AS $$
	CLUSTER 'idempotency';
	RUN ON shard;
	SELECT idempotency_shard.fence($2, $3);
$$;
COMMENT ON FUNCTION idempotency_move.fence IS
	'Sends idempotency_shard.fence() to a shard';

CREATE FUNCTION idempotency_move.renew(shard pg_catalog.int4, pg_catalog.text)
RETURNS pg_catalog.int8
LANGUAGE plproxy
AS $$
	CLUSTER 'idempotency';
	RUN ON shard;
	SELECT idempotency_shard.renew($2);
$$;
COMMENT ON FUNCTION idempotency_move.renew IS
	'Sends idempotency_shard.renew() to a shard';

CREATE FUNCTION idempotency_move.lift(shard pg_catalog.int4, pg_catalog.text, pg_catalog.int8)
RETURNS pg_catalog.bool
LANGUAGE plproxy
AS $$
	CLUSTER 'idempotency';
	RUN ON shard;
	SELECT idempotency_shard.lift($2, $3);
$$;
COMMENT ON FUNCTION idempotency_move.lift IS
	'Sends idempotency_shard.lift() to a shard';

CREATE FUNCTION idempotency_move.empty(shard pg_catalog.int4, pg_catalog.text, pg_catalog.int8)
RETURNS pg_catalog.int8
LANGUAGE plproxy
AS $$
	CLUSTER 'idempotency';
	RUN ON shard;
	SELECT idempotency_shard.empty($2, $3);
$$;
COMMENT ON FUNCTION idempotency_move.empty IS
	'Sends idempotency_shard.empty() to a shard';

CREATE FUNCTION idempotency_move.export(shard pg_catalog.int4, pg_catalog.text, pg_catalog.text, pg_catalog.text, pg_catalog.int4,
	OUT place pg_catalog.text, OUT line pg_catalog.text)
RETURNS SETOF record
LANGUAGE plproxy
AS $$
	CLUSTER 'idempotency';
	RUN ON shard;
	SELECT e.place, e.line FROM idempotency_shard.export($2, $3, $4, $5) AS e;
$$;
COMMENT ON FUNCTION idempotency_move.export IS
	'Sends idempotency_shard.export() to a shard';

CREATE FUNCTION idempotency_move.import(shard pg_catalog.int4, pg_catalog.text, pg_catalog.int8, pg_catalog.text, pg_catalog.text[])
RETURNS pg_catalog.int8
LANGUAGE plproxy
AS $$
	CLUSTER 'idempotency';
	RUN ON shard;
	SELECT idempotency_shard.import($2, $3, $4, $5);
$$;
COMMENT ON FUNCTION idempotency_move.import IS
	'Sends idempotency_shard.import() to a shard';

CREATE FUNCTION idempotency_move.digest(shard pg_catalog.int4, pg_catalog.text,
	OUT relation pg_catalog.text, OUT number_of_rows pg_catalog.int8, OUT digest pg_catalog.numeric)
RETURNS SETOF record
LANGUAGE plproxy
AS $$
	CLUSTER 'idempotency';
	RUN ON shard;
	SELECT d.relation, d.number_of_rows, d.digest FROM idempotency_shard.digest($2) AS d;
$$;
COMMENT ON FUNCTION idempotency_move.digest IS
	'Sends idempotency_shard.digest() to a shard';

CREATE FUNCTION idempotency_move.set_policy(shard pg_catalog.int4, pg_catalog.text, pg_catalog.interval, pg_catalog.interval,
	pg_catalog.interval, pg_catalog.interval, pg_catalog.bool, pg_catalog.int4)
RETURNS pg_catalog.bool
LANGUAGE plproxy
AS $$
	CLUSTER 'idempotency';
	RUN ON shard;
	SELECT idempotency.set_policy($2, $3, $4, $5, $6, $7, $8);
$$;
COMMENT ON FUNCTION idempotency_move.set_policy IS
	'Sends set_policy() to one shard';

CREATE FUNCTION idempotency_move.copy_policies(from_shard pg_catalog.int4, to_shard pg_catalog.int4)
RETURNS pg_catalog.int8
LANGUAGE sql
AS $$
	SELECT pg_catalog.count(idempotency_move.set_policy($2, p.operation, p.ttl, p.failed_ttl, p.response_ttl, p.lease,
		p.hold_if_abandoned, p.max_attempts))
	FROM idempotency_front.policies($1) AS p
$$;
COMMENT ON FUNCTION idempotency_move.copy_policies IS
	'Gives a new shard the policies of another, and says how many';

-- Waits for a call of move_scope() that is at work on the same scope.
CREATE FUNCTION idempotency_move.locked(scope pg_catalog.text)
RETURNS idempotency_front.scopes
LANGUAGE sql
AS $$
	SELECT s FROM idempotency_front.scopes AS s WHERE s.scope OPERATOR(pg_catalog.=) $1 FOR UPDATE
$$;
COMMENT ON FUNCTION idempotency_move.locked IS
	'Where a scope is, locked';

CREATE FUNCTION idempotency_move.check_movable(scope pg_catalog.text)
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
	IF idempotency_front.by_identity() THEN
		RAISE EXCEPTION 'keys are routed by identity, so no scope is in one place'
			USING ERRCODE = '0A000', HINT = 'Only where keys are routed by scope can scopes be moved.';
	END IF;
	IF scope IS NULL OR scope OPERATOR(pg_catalog.=) '' THEN
		RAISE EXCEPTION 'scope must be given' USING ERRCODE = '22004', HINT = 'Say which scope is meant.';
	END IF;
	IF pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.<>) 'read committed' THEN
		RAISE EXCEPTION 'a scope can be moved in READ COMMITTED only'
			USING ERRCODE = '25001', HINT = 'SET default_transaction_isolation = ''read committed'' first.';
	END IF;
END
$$;
COMMENT ON FUNCTION idempotency_move.check_movable IS
	'Refuses what cannot be moved';

CREATE FUNCTION idempotency_move.copy(scope pg_catalog.text, from_shard pg_catalog.int4, to_shard pg_catalog.int4, ticket pg_catalog.int8, batch_size pg_catalog.int4)
RETURNS pg_catalog.int8
LANGUAGE plpgsql
AS $$
DECLARE
	relation pg_catalog.text;
	after pg_catalog.text;
	last_place pg_catalog.text;
	lines pg_catalog.text[];
	copied pg_catalog.int8 := 0;
BEGIN
	FOR relation IN SELECT d.relation FROM idempotency_move.digest(from_shard, scope) AS d LOOP
		after := '(0,0)';
		LOOP
			SELECT pg_catalog.array_agg(e.line), (pg_catalog.array_agg(e.place))[pg_catalog.count(*)]
			INTO lines, last_place
			FROM idempotency_move.export(from_shard, scope, relation, after, batch_size) AS e;
			EXIT WHEN lines IS NULL;
			copied := copied OPERATOR(pg_catalog.+) idempotency_move.import(to_shard, scope, ticket, relation, lines);
			after := last_place;
		END LOOP;
	END LOOP;
	RETURN copied;
END
$$;
COMMENT ON FUNCTION idempotency_move.copy IS
	'Copies the rows of a fenced scope, and says how many';

CREATE PROCEDURE idempotency_move.move_scope(scope pg_catalog.text, to_shard pg_catalog.int4, batch_size pg_catalog.int4 DEFAULT 1000)
LANGUAGE plpgsql
AS $$
DECLARE
	place idempotency_front.scopes;
	ticket pg_catalog.int8;
	copied pg_catalog.int8;
	differing pg_catalog.text;
BEGIN
	PERFORM idempotency_move.check_movable($1);
	IF $2 IS NULL OR $2 OPERATOR(pg_catalog.<>) ALL (ARRAY(SELECT idempotency_front.shards())) THEN
		RAISE EXCEPTION 'there is no such shard'
			USING ERRCODE = '22023', HINT = 'Shards are numbered from 0, as the options of the foreign server "idempotency".';
	END IF;

	-- An earlier call that was interrupted after the switch comes to its end first.
	SELECT * INTO place FROM idempotency_move.locked($1);
	IF place.scope IS NULL THEN
		INSERT INTO idempotency_front.scopes AS s (scope, shard) VALUES ($1, idempotency_front.shard_of($1, NULL, NULL))
		ON CONFLICT ON CONSTRAINT scopes_pkey DO NOTHING;
		SELECT * INTO place FROM idempotency_move.locked($1);
	END IF;
	IF place.leftover IS NOT NULL THEN
		PERFORM idempotency_move.finish(place);
		place.leftover := NULL;
	END IF;
	IF place.moving_to IS NULL AND place.shard OPERATOR(pg_catalog.=) $2 THEN
		RAISE NOTICE 'the scope is on shard %', $2;
		RETURN;
	END IF;
	IF place.moving_to OPERATOR(pg_catalog.<>) $2 THEN
		RAISE EXCEPTION 'the scope is being moved to shard %', place.moving_to
			USING ERRCODE = '55000', HINT = 'Move it there first, or call abandon_move().';
	END IF;
	UPDATE idempotency_front.scopes AS s SET moving_to = $2, changed_at = pg_catalog.clock_timestamp()
	WHERE s.scope OPERATOR(pg_catalog.=) $1;
	COMMIT;

	SELECT * INTO place FROM idempotency_move.locked($1);
	IF place.moving_to OPERATOR(pg_catalog.=) $2 THEN
		ticket := idempotency_move.fence($2, $1, true);
		PERFORM idempotency_move.fence(place.shard, $1, false);
		PERFORM idempotency_move.empty($2, $1, ticket);
		copied := idempotency_move.copy($1, place.shard, $2, ticket, $3);
		SELECT pg_catalog.string_agg(d.relation, ', ') INTO differing
		FROM (SELECT * FROM idempotency_move.digest(place.shard, $1)
			EXCEPT ALL SELECT * FROM idempotency_move.digest($2, $1)) AS d;
		IF differing IS NOT NULL THEN
			RAISE EXCEPTION 'what was copied differs: %', differing
				USING ERRCODE = '55000', HINT = 'Keys that expired meanwhile may have been deleted: call it again. Otherwise compare the tables of the two shards.';
		END IF;
		UPDATE idempotency_front.scopes AS s
		SET shard = $2, moving_to = NULL, leftover = place.shard, changed_at = pg_catalog.clock_timestamp()
		WHERE s.scope OPERATOR(pg_catalog.=) $1;
	END IF;
	COMMIT;

	SELECT * INTO place FROM idempotency_move.locked($1);
	IF place.leftover IS NOT NULL THEN
		PERFORM idempotency_move.finish(place);
	END IF;
	COMMIT;
	RAISE NOTICE 'the scope is on shard %; rows copied: %', $2, copied;
END
$$;
COMMENT ON PROCEDURE idempotency_move.move_scope IS
	'Moves the keys of a scope, and the rows that go with them, to another shard while traffic goes on; call it again where it was interrupted';

CREATE FUNCTION idempotency_move.finish(place idempotency_front.scopes)
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
	PERFORM idempotency_move.lift(place.shard, place.scope, idempotency_move.renew(place.shard, place.scope));
	PERFORM idempotency_move.empty(place.leftover, place.scope, idempotency_move.renew(place.leftover, place.scope));
	UPDATE idempotency_front.scopes AS s SET leftover = NULL, changed_at = pg_catalog.clock_timestamp()
	WHERE s.scope OPERATOR(pg_catalog.=) place.scope;
END
$$;
COMMENT ON FUNCTION idempotency_move.finish IS
	'After the switch: opens the new shard and empties the old one';

CREATE PROCEDURE idempotency_move.abandon_move(scope pg_catalog.text)
LANGUAGE plpgsql
AS $$
DECLARE
	place idempotency_front.scopes;
	ticket pg_catalog.int8;
BEGIN
	PERFORM idempotency_move.check_movable($1);
	SELECT * INTO place FROM idempotency_move.locked($1);
	IF place.moving_to IS NULL THEN
		RAISE EXCEPTION 'the scope is not being moved'
			USING ERRCODE = '55000', HINT = 'After the switch it can be moved back by move_scope().';
	END IF;
	ticket := idempotency_move.fence(place.moving_to, $1, true);
	PERFORM idempotency_move.empty(place.moving_to, $1, ticket);
	PERFORM idempotency_move.lift(place.moving_to, $1, ticket);
	PERFORM idempotency_move.lift(place.shard, $1, idempotency_move.renew(place.shard, $1));
	UPDATE idempotency_front.scopes AS s SET moving_to = NULL, changed_at = pg_catalog.clock_timestamp()
	WHERE s.scope OPERATOR(pg_catalog.=) $1;
END
$$;
COMMENT ON PROCEDURE idempotency_move.abandon_move IS
	'Leaves a scope where it was, after a move_scope() that was interrupted before the switch';

REVOKE ALL ON ALL ROUTINES IN SCHEMA idempotency_move FROM PUBLIC;
